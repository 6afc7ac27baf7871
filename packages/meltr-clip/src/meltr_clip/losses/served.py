"""Which losses the towers of a model can serve."""

from __future__ import annotations

from meltr.context import RunContext
from meltr.errors import UserError
from meltr_clip.losses.video import LOSSES as VIDEO_LOSSES
from meltr_clip.plugin import LOSSES


def unable(family: str, context: RunContext) -> dict[str, str]:
    """Return the losses of a run that its model cannot serve -> why; they are dropped where no losses were named.

    Args:
        family: One of `meltr_clip.weights.parts.FAMILIES`.
        context: The run.

    Raises:
        UserError: If the model cannot do the task, or cannot serve the primary loss or a loss that was named.
    """
    spec = context.spec
    if family == "videomae" and spec.task != "action":
        raise UserError(
            f"VideoMAE has no tower for texts, which the task {spec.task!r} needs.",
            "Use --task action, or a model with two towers: CLIP, SigLIP or SigLIP 2.",
        )
    able = [
        name
        for name in LOSSES[spec.task]
        if (name in VIDEO_LOSSES if family == "videomae" else name != "reconstruction")
    ]
    why = "VideoMAE has no tower for texts" if family == "videomae" else f"a {family} model has no decoder of tubes"
    gone = {name: why for name in spec.losses if name not in able}
    if gone and (spec.losses[0] in gone or set(spec.losses) != set(LOSSES[spec.task])):
        raise UserError(
            f"The model cannot serve the loss {next(iter(gone))!r}: {why}.", f"Valid choices: {', '.join(able)}."
        )
    return gone
