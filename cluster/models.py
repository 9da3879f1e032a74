"""`prompt-iml models`: what a registry holds, and moving what is current by hand."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from prompt_iml.cluster.settings import ModelsSettings
from prompt_iml.engine.errors import FetchError, UnknownPrompts, UsageError
from prompt_iml.engine.model.folder import load_model
from prompt_iml.pipeline.registry.promotion import name_of, promote, roll_back, whoami
from prompt_iml.pipeline.registry.registry import Registry, bases
from prompt_iml.pipeline.run.folder import Json
from prompt_iml.pipeline.storage import storage


def run(settings: ModelsSettings) -> Json:
    """List, promote or roll back; returns what stands afterwards.

    Raises:
        UsageError: the registry or a version cannot be read, or the move is not possible.
    """
    if settings.action != "promote" and settings.version:
        raise UsageError(f"{settings.action} takes no prompt set: leave out {settings.version}")
    try:
        registries = _registries(settings)
        if settings.action == "list":
            listed = [describe(registry) for registry in registries]
            print("\n".join(line for base in listed for line in table(base)), file=sys.stderr)
            return {"bases": listed}
        if settings.action == "promote":
            return _promote(settings.version, registries)
        return _roll_back(registries)
    except FetchError as error:
        raise UsageError(f"cannot read --registry: {error}") from error


def describe(registry: Registry) -> Json:
    """The versions for one base model, oldest first, and the moves of `current`."""
    state = registry.state()
    versions = [_describe(registry, digest) for digest in registry.versions()]
    return {
        **state.to_json(),
        "base": registry.base,
        "versions": sorted(versions, key=lambda version: (version["made_at"], version["version"])),
    }


def _describe(registry: Registry, digest: str) -> Json:
    verdict = registry.verdict(digest) or {"reasons": []}
    word = {True: "passed", False: "refused", None: "not evaluated"}[verdict.get("passed")]
    return {**registry.record(digest), "verdict": word, "reasons": verdict["reasons"]}


def table(base: Json) -> Iterator[str]:
    """What `describe` gave, as lines for a person."""
    yield f"base {base['base'][:12]}, current: {name_of(base['current'])}"
    for version in base["versions"]:
        mark = "*" if version["version"] == base["current"] else " "
        yield (
            f"{mark} {version['version'][:16]}  rows say {version['prompt_set']}  "
            f"{version['made_at']}  {version['verdict']}  {'; '.join(version['reasons'])}"
        ).rstrip()
    for move in base["moves"]:
        yield f"  {move['at']}  {move['kind']} -> {name_of(move['version'])}, by {move['by']}"
    if base["lease"]:
        yield f"  a re-training cycle is under way: {base['lease']['owner']}"


def _registries(settings: ModelsSettings) -> list[Registry]:
    uri = storage.canonical(settings.registry)
    if settings.model:
        return [Registry(uri, load_model(settings.model).sha256)]
    return [Registry(uri, base) for base in bases(uri)]


def _promote(name: str | None, registries: list[Registry]) -> Json:
    if name is None:
        raise UsageError("promote which? give a digest; prompt-iml models list shows them")
    for registry in registries:
        current = registry.state().current
        try:
            digest = registry.find(name)
        except UnknownPrompts:
            if registry is registries[-1]:
                raise
            continue
        storage.check_writable(registry.uri)
        return promote(registry, digest, expected=current, by=whoami()).to_json()
    raise UnknownPrompts(f"no prompt set {name}: the registry is empty")


def _roll_back(registries: list[Registry]) -> Json:
    moved = [(registry, state) for registry in registries if (state := registry.state()).promoted]
    if not moved:
        raise UsageError("nothing to roll back: the model's own prompts are current")
    if len(moved) > 1:
        raise UsageError("the registry serves several base models: say which with --model")
    registry, state = moved[0]
    storage.check_writable(registry.uri)
    return roll_back(registry, expected=state.current, by=whoami()).to_json()
