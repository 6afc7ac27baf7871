"""Settings that backbones of video and text have in common (``options.*``). Imports no torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field

from meltr.specs import Info

S = TypeVar("S")


class VideoOptions(Info):
    """Settings of a backbone of video and text; it derives its own from this class.

    A subclass may give a field another default or narrower type, and another description in its docstring.

    Args:
        size: Size of the model; ``tiny`` for miniatures and first tries.
        weights: Start from this checkpoint: a published one, or ``backbone.safetensors`` of a run.
        vocabulary: vocab.txt of bert-base-uncased; None: from the Hugging Face cache (miniatures, and the tiny model
            without `weights`, take the words of the data set).
        text_length: Tokens of a text, [CLS] and [SEP] included; longer texts are cut.
        attention: Kernel of attention: ``fused`` (scaled dot product attention) or ``eager``.
        negatives: Texts and videos that losses compare with: those of ``all`` processes, or of the ``own`` one as
            released.
        pairs_per_pass: Most pairs of video and text that go through the model at a time; None: all while training, 64
            in evaluation.
        workers: Processes that read and decode; None: none where nothing is decoded, else one a core, up to 8.
        eval_batch_size: Videos in a batch of an evaluation.
        save_predictions: Write the prediction for every evaluated example.
    """

    size: str = "base"
    weights: Path | None = None
    vocabulary: Path | None = None
    text_length: int = Field(40, ge=3, le=512)
    attention: Literal["fused", "eager"] = "fused"
    negatives: Literal["all", "own"] = "all"
    pairs_per_pass: int | None = Field(None, ge=1)
    workers: int | None = Field(None, ge=0)
    eval_batch_size: int = Field(16, ge=1)
    save_predictions: bool = True


class FrameOptions(VideoOptions):
    """Settings of a backbone that sees frames.

    Args:
        frames: Frames of a clip.
        image_size: Side of a frame in pixels.
        frame_cache: A folder that ``meltr data cache`` made; None: videos are decoded when they are needed.
        memory_mb: Frames are kept in memory up to this many MiB (with ``workers=0``).
    """

    frames: int = Field(5, ge=1)
    image_size: int = Field(224, ge=1)
    frame_cache: Path | None = None
    memory_mb: int = Field(2048, ge=0)


def picked(settings: type[S], options: VideoOptions) -> S:
    """Return settings whose fields are options of the same names.

    Args:
        settings: A dataclass, such as the settings of a backbone's losses.
        options: The backbone's options, with a field for each of its fields.
    """
    names: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(settings)  # type: ignore[arg-type]
    return settings(**{each.name: getattr(options, each.name) for each in names})
