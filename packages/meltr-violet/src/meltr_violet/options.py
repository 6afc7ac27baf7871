"""Settings of the VIOLET backbone (``options.*``). Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from meltr.specs import Info


class VioletOptions(Info):
    """Settings of the VIOLET backbone.

    Args:
        size: ``base`` is the published model (198 million parameters); ``tiny`` for miniatures and first tries.
        weights: Start from this checkpoint: ``ckpt_violet_pretrain.pt``, or ``backbone.safetensors`` of a run.
        video_swin: Without `weights`: start the video branch from ``ckpt_video-swin.pt``.
        bert: Without `weights`: start text and transformer from bert-base-uncased (``model.safetensors``).
        fc: Which head takes the checkpoint's matching head: ``vtm``; ``choice`` (as the original VIOLET does for
            multiple choice), ``answer``, or ``none`` (MELTR's code for question answering, which drops it).
        vocabulary: vocab.txt of bert-base-uncased; None: from the Hugging Face cache (miniatures, and the tiny model
            without `weights`, take the words of the data set).
        frames: T, frames of a clip, at most 6.
        image_size: Side of a frame in pixels, a multiple of 32 (at most 448).
        text_length: X, tokens of a text, [CLS] and [SEP] included; longer ones are cut.
        clip: What matching and answering see while training: the ``clean`` clip, or the ``masked`` one as in MELTR's
            released code.
        choice_text: How a question and a choice are put together: ``prompt`` (all choices, then the answer), ``plain``
            (the original VIOLET), ``released`` (MELTR's code, with words glued together).
        released_choice: Matching and masked text of multiple choice with the defects of MELTR's released code.
        negatives: Texts that matching compares with: of ``all`` processes, or of the ``own`` one as released.
        temperature: Matching scores are divided by it in the loss (0.05 as published).
        pairs_per_pass: Most pairs of clip and text that go through the transformer at a time; None: all while training,
            64 in evaluation.
        codes: Visual codes for the loss mvm: ``auto`` (prepared ones, or colours in a miniature), ``none``, ``colour``
            (the mean colour of each cell: a stand-in without any weights), or a file that ``meltr data codes`` wrote.
        prepared: Use VIOLET's prepared files (``img_*.pkl``, ``txt_*.json``, ...) where the data root has them.
        frame_cache: A folder that ``meltr data cache`` made; None: videos are decoded when they are needed.
        workers: Processes that read and decode; None: none if frames come from memory or a cache, else one a core.
        memory_mb: Frames are kept in memory up to this many MiB (with ``workers=0``).
        answer_dropout: Dropout of the head for open-ended answers and actions.
        attention: ``fused`` (scaled dot product attention) or ``eager``, in the transformer.
        eval_batch_size: Clips a batch of an evaluation.
        save_predictions: Write the prediction for every evaluated example.
    """

    size: Literal["base", "tiny"] = "base"
    weights: Path | None = None
    video_swin: Path | None = None
    bert: Path | None = None
    fc: Literal["vtm", "answer", "choice", "none"] = "vtm"
    vocabulary: Path | None = None
    frames: int = Field(5, ge=1, le=6)
    image_size: int = Field(224, ge=32, le=448)
    text_length: int = Field(25, ge=3, le=512)
    clip: Literal["clean", "masked"] = "clean"
    choice_text: Literal["prompt", "plain", "released"] = "prompt"
    released_choice: bool = False
    negatives: Literal["all", "own"] = "all"
    temperature: float = Field(0.05, gt=0)
    pairs_per_pass: int | None = Field(None, ge=1)
    codes: str = "auto"
    prepared: bool = True
    frame_cache: Path | None = None
    workers: int | None = Field(None, ge=0)
    memory_mb: int = Field(2048, ge=0)
    answer_dropout: float = Field(0.5, ge=0, lt=1)
    attention: Literal["fused", "eager"] = "fused"
    eval_batch_size: int = Field(16, ge=1)
    save_predictions: bool = True

    @field_validator("image_size")
    @classmethod
    def _whole_cells(cls, value: int) -> int:
        if value % 32:
            raise ValueError(f"image_size={value} is not a multiple of 32, the side of a cell")
        return value
