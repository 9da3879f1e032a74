"""The flag `--closer-look`, which may differ from what a policy was calibrated with."""

from __future__ import annotations

from prompt_iml.engine.model.folder import Model
from prompt_iml.pipeline.logs import log


def looking_closer(model: Model, tiles: int | None) -> Model:
    """Return the model with this `Policy.closer_look`, and log if its policy has another.

    Args:
        model: with the policy that is applied.
        tiles: value of the flag; None: that of the policy.
    """
    policy = model.policy
    if tiles not in (None, policy.closer_look):
        log(
            f"policy {policy.id} was calibrated with --closer-look {policy.closer_look}, not "
            f"{tiles}: its rates need not hold for pictures above 12 megapixels"
        )
    return model.looking_closer(tiles)
