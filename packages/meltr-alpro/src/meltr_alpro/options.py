"""Settings of the ALPRO backbone (``options.*``). Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from meltr.video.options import FrameOptions, multiple_of


class AlproOptions(FrameOptions):
    """Settings of the ALPRO backbone.

    Args:
        size: ``base`` is the published model; ``tiny`` for synthetic samples and first tries.
        weights: Start from an official checkpoint (``alpro_pretrained_ckpt.pt``), or ``backbone.safetensors`` of a run.
        frames: T, frames per clip (16 as published). The checkpoint's table of frames is adapted.
        image_size: Side of a frame in pixels, a multiple of 16 (224 as published).
        sampling: Frames of a training clip: ``random`` at every visit, as published, or ``fixed`` as in evaluation.
        eval_sampling: Frames of evaluation: the ``middles`` of T segments, or ``released``, every floor(n / T)-th from
            the first on, which never sees the end of a video.
        video_weights: Weights of the video encoder that are trained: ``all``, or ``released``: all but those of
            attention and MLPs, which get no gradient in the released code by mistake.
        pem_ignore: Regions that ``pem`` ignores: ``unsure``, those whose best entity has a probability below
            `pem_threshold`, or ``released``, those whose best entity is number 0, by mistake.
        pem_threshold: Lowest probability of the best entity.
        scoring: Score of a text and a video in retrieval: from their vectors (``dual``), from the fusion of the pair
            (``joint``), or from the fusion for the best of ``dual`` (``rerank``).
        rerank: Number of best candidates to re-rank.
    """

    size: Literal["base", "tiny"] = "base"
    frames: int = Field(16, ge=1)
    image_size: Annotated[int, multiple_of(16, "the side of a patch")] = Field(224, ge=16)
    sampling: Literal["random", "fixed"] = "random"
    eval_sampling: Literal["middles", "released"] = "middles"
    video_weights: Literal["all", "released"] = "all"
    pem_ignore: Literal["unsure", "released"] = "unsure"
    pem_threshold: float = Field(0.2, ge=0, le=1)
    scoring: Literal["dual", "joint", "rerank"] = "rerank"
    rerank: int = Field(50, ge=1)
