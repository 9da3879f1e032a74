"""`prompt-iml models`: list the prompt sets of a registry, promote one or roll back."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from prompt_iml.engine.errors import UnknownPrompts, UsageError
from prompt_iml.engine.model.folder import load_model
from prompt_iml.pipeline.registry.promotion import promote, roll_back, whoami
from prompt_iml.pipeline.registry.registry import Registry, bases, readable, short_name
from prompt_iml.pipeline.run.folder import Json
from prompt_iml.pipeline.settings import ModelsSettings
from prompt_iml.pipeline.storage import storage


def run(settings: ModelsSettings) -> Json:
    """List, promote or roll back; return the state afterwards.

    Raises:
        UsageError: the registry or a set cannot be read, or `current` cannot be moved so.
    """
    if settings.action != "promote" and settings.prompt_set:
        raise UsageError(f"{settings.action} takes no prompt set: leave out {settings.prompt_set}")
    with readable():
        registries = _registries(settings)
        if settings.action == "list":
            listed = [describe(registry) for registry in registries]
            print("\n".join(line for base in listed for line in table(base)), file=sys.stderr)
            return {"bases": listed}
        if settings.action == "promote":
            return _promote(settings.prompt_set, registries)
        return _roll_back(registries)


def describe(registry: Registry) -> Json:
    """Return the prompt sets for one base model, oldest first, and the moves of `current`."""
    sets = [_describe(registry, prompt_set) for prompt_set in registry.ids()]
    return {
        **registry.state().to_json(),
        "base": registry.base,
        "versions": sorted(sets, key=lambda each: (each["made_at"], each["version"])),
    }


def _describe(registry: Registry, prompt_set: str) -> Json:
    verdict = registry.verdict(prompt_set) or {"reasons": []}
    word = {True: "passed", False: "refused", None: "not evaluated"}[verdict.get("passed")]
    return {**registry.record(prompt_set), "verdict": word, "reasons": verdict["reasons"]}


def table(base: Json) -> Iterator[str]:
    """Yield the result of `describe` as lines for people; sets have the ids that rows name."""
    names = {each["version"]: each["prompt_set"] for each in base["versions"]}
    yield f"base {base['base'][:12]}, current: {_name(names, base['current'])}"
    for each in base["versions"]:
        mark = "*" if each["version"] == base["current"] else " "
        line = f"{mark} {each['prompt_set']}  {each['made_at']}  {each['verdict']}"
        yield f"{line}  {'; '.join(each['reasons'])}".rstrip()
    for move in base["moves"]:
        yield f"  {move['at']}  {move['kind']} -> {_name(names, move['version'])}, by {move['by']}"
    if base["lease"]:
        yield f"  a re-training cycle is under way: {base['lease']['owner']}"


def _name(names: dict[str, str], version: str | None) -> str:
    """Return the name that rows have for a set; the start of its id if it is no longer there."""
    return names.get(version or "", short_name(version))


def _registries(settings: ModelsSettings) -> list[Registry]:
    uri = storage.canonical(settings.registry)
    if settings.model:
        return [Registry(uri, load_model(settings.model).sha256)]
    return [Registry(uri, base) for base in bases(uri)]


def _promote(name: str | None, registries: list[Registry]) -> Json:
    if name is None:
        raise UsageError("promote needs the id of a prompt set: prompt-iml models list shows them")
    for registry in registries:
        current = registry.state().current
        try:
            prompt_set = registry.find(name)
        except UnknownPrompts:
            if registry is registries[-1]:
                raise
            continue
        storage.check_writable(registry.uri)
        return promote(registry, prompt_set, expected=current, by=whoami()).to_json()
    raise UnknownPrompts(f"no prompt set {name}: the registry is empty")


def _roll_back(registries: list[Registry]) -> Json:
    moved = [(registry, state) for registry in registries if (state := registry.state()).promoted]
    if not moved:
        raise UsageError("nothing to roll back: the model's own prompts are current")
    if len(moved) > 1:
        raise UsageError("the registry serves several base models: name one with --model")
    registry, state = moved[0]
    storage.check_writable(registry.uri)
    return roll_back(registry, expected=state.current, by=whoami()).to_json()
