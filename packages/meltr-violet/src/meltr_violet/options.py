"""Settings of the VIOLET backbone (``options.*``). Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from meltr.video.options import FrameOptions, multiple_of


class VioletOptions(FrameOptions):
    """Settings of the VIOLET backbone.

    Args:
        size: ``base`` is the published model (198 million parameters); ``tiny`` for synthetic samples and first tries.
        weights: Start from this checkpoint: ``ckpt_violet_pretrain.pt``, or ``backbone.safetensors`` of a run.
        video_swin: Without `weights`: start the video branch from ``ckpt_video-swin.pt``.
        bert: Without `weights`: start text and transformer from bert-base-uncased (``model.safetensors``).
        fc: Head that receives the checkpoint's matching head: ``vtm``; ``choice`` (as the original VIOLET does for
            multiple choice), ``answer``, or ``none`` (MELTR's code for question answering, which drops it).
        frames: T, frames per clip, at most 6.
        image_size: Side of a frame in pixels, a multiple of 32 (at most 448).
        clip: Clip for matching and answering in training: the ``clean`` one, or the ``masked`` one as in MELTR's
            released code.
        choice_text: How a question and a choice are combined: ``prompt`` (all choices, then the answer), ``plain`` (the
            original VIOLET), ``released`` (MELTR's code, with words joined by mistake).
        released_choice: Matching and masked text of multiple choice with the defects of MELTR's released code.
        temperature: The matching loss divides scores by this number (0.05 as published).
        codes: Visual codes for the loss mvm: ``auto`` (prepared ones, or colours in a synthetic sample), ``none``,
            ``colour`` (the mean colour of each cell: a substitute without weights), or a file of ``meltr data codes``.
        prepared: Use VIOLET's prepared files (``img_*.pkl``, ``txt_*.json``, ...) if the data root has them.
        answer_dropout: Dropout of the head for open-ended answers and actions.
    """

    size: Literal["base", "tiny"] = "base"
    video_swin: Path | None = None
    bert: Path | None = None
    fc: Literal["vtm", "answer", "choice", "none"] = "vtm"
    frames: int = Field(5, ge=1, le=6)
    image_size: Annotated[int, multiple_of(32, "the side of a cell")] = Field(224, ge=32, le=448)
    text_length: int = Field(25, ge=3, le=512)
    clip: Literal["clean", "masked"] = "clean"
    choice_text: Literal["prompt", "plain", "released"] = "prompt"
    released_choice: bool = False
    temperature: float = Field(0.05, gt=0)
    codes: str = "auto"
    prepared: bool = True
    answer_dropout: float = Field(0.5, ge=0, lt=1)
