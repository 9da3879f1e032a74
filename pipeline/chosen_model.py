"""Model of a command: an installed one, with the prompts, policy and closer look of its flags."""

from __future__ import annotations

from dataclasses import replace

from prompt_iml.engine.model.folder import Model
from prompt_iml.engine.model.policy import read_policy
from prompt_iml.pipeline.logs import log
from prompt_iml.pipeline.registry.registry import PromptSetRef, Registry, with_prompt_set


def chosen_model(
    model: Model,
    *,
    prompt_set: PromptSetRef | None = None,
    policy: str | None = None,
    closer_look: int | None = None,
) -> Model:
    """Return the model with what the flags choose; None leaves what it has.

    Logs if the closer look is not the one that the policy was calibrated with.

    Args:
        model: from `load_model`.
        prompt_set: prompts of a registry, with their policy.
        policy: file of a policy that replaces theirs.
        closer_look: value for `Policy.closer_look`.

    Raises:
        UsageError: the prompt set or the policy cannot be read.
    """
    if prompt_set:
        registry = Registry(prompt_set.registry, model.sha256)
        model = with_prompt_set(model, registry, prompt_set.id)
    if policy:
        model = replace(model, policy=read_policy(policy))
    calibrated = model.policy.closer_look
    if closer_look not in (None, calibrated):
        log(
            f"policy {model.policy.id} was calibrated with --closer-look {calibrated}, not "
            f"{closer_look}: its rates need not hold for pictures above 12 megapixels"
        )
    return model.looking_closer(closer_look)
