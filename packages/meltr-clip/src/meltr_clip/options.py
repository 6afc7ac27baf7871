"""Settings of the clip backbone (``options.*``). Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from meltr.video.options import FrameOptions

Family = Literal["clip", "siglip", "siglip2", "videomae"]


class ClipOptions(FrameOptions):
    """Settings of the clip backbone.

    Args:
        model: Name or folder of a CLIP, SigLIP, SigLIP 2 or VideoMAE of transformers; None: a small one from scratch.
        family: Family of the small model, which is used without `model`.
        size: The small model has one size.
        weights: Then load ``backbone.safetensors`` of a run.
        vocabulary: vocab.txt for the small model; None: the words of the data set.
        text_length: Tokens per text; None: all positions of the text tower. SigLIP needs all.
        pairs_per_pass: Not used: texts and videos are compared by their vectors.
        frames: Frames per video; None: 8, or those that VideoMAE was trained on. Images have one.
        image_size: Side of a frame of the small model in pixels, a multiple of 8; `model` has its own.
        prompt: Text of a class; ``{}`` stands for its name.
        mask_ratio: Share of the tubes that ``reconstruction`` hides.
    """

    model: str | None = None
    family: Family = "clip"
    size: Literal["tiny"] = "tiny"
    text_length: int | None = Field(None, ge=3)  # type: ignore[assignment]
    pairs_per_pass: None = None
    frames: int | None = Field(None, ge=1)  # type: ignore[assignment]
    image_size: int | None = Field(None, ge=16, multiple_of=8)  # type: ignore[assignment]
    prompt: str = "a video of {}."
    mask_ratio: float = Field(0.9, gt=0, lt=1)

    @model_validator(mode="after")
    def _consistent(self) -> ClipOptions:
        if self.prompt.count("{}") != 1:
            raise ValueError(f"prompt={self.prompt!r} must contain {{}} once, for the name of the class")
        own = [name for name in ("vocabulary", "image_size") if getattr(self, name) is not None]
        if self.model is not None and own:
            raise ValueError(f"{own[0]} is for the small model: {self.model} has its own")
        return self
