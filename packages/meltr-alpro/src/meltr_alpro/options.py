"""Settings of the ALPRO backbone (``options.*``). Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from meltr.video.options import FrameOptions


class AlproOptions(FrameOptions):
    """Settings of the ALPRO backbone.

    Args:
        size: ``base`` is the published model; ``tiny`` for synthetic samples and first tries.
        weights: Start from this checkpoint: ``alpro_pretrained_ckpt.pt`` or another official one, or
            ``backbone.safetensors`` of a run.
        frames: T, frames per clip (16 as published for questions). The checkpoint's table of frames is adapted.
        image_size: Side of a frame in pixels, a multiple of 16 (224 as published).
        text_length: L, tokens per text, [CLS] and [SEP] included; longer ones are truncated (40 as published).
        sampling: Frames of a training clip: ``random``, other ones at every visit, as published; or ``fixed``, those of
            evaluation, which are decoded once.
        eval_sampling: Frames of evaluation: the ``middles`` of T segments, or ``released``, every floor(n / T)-th from
            the first on, which never sees the end of a video.
        video_weights: Weights of the video encoder that are trained: ``all``, or ``released``: all but those of
            attention and MLPs, which get no gradient in the released code by mistake.
        pem_ignore: Regions that ``pem`` ignores: ``unsure``, those whose best entity has a probability below
            `pem_threshold`, or ``released``, those whose best entity is number 0, by mistake.
        pem_threshold: Lowest probability of the best entity.
        scoring: How retrieval scores a text and a video: ``dual`` (two vectors), ``joint`` (fusion of every pair), or
            ``rerank`` (fusion for the best of ``dual``).
        rerank: Number of best candidates to re-rank.
    """

    size: Literal["base", "tiny"] = "base"
    frames: int = Field(16, ge=1)
    image_size: int = Field(224, ge=16)
    sampling: Literal["random", "fixed"] = "random"
    eval_sampling: Literal["middles", "released"] = "middles"
    video_weights: Literal["all", "released"] = "all"
    pem_ignore: Literal["unsure", "released"] = "unsure"
    pem_threshold: float = Field(0.2, ge=0, le=1)
    scoring: Literal["dual", "joint", "rerank"] = "rerank"
    rerank: int = Field(50, ge=1)

    @field_validator("image_size")
    @classmethod
    def _whole_patches(cls, value: int) -> int:
        if value % 16:
            raise ValueError(f"image_size={value} is not a multiple of 16, the side of a patch")
        return value
