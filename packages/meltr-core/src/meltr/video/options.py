"""Settings shared by backbones of video and text (``options.*``). Imports no torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import AfterValidator, Field, ValidationInfo

from meltr.specs import Info

S = TypeVar("S")


def multiple_of(number: int, what: str) -> AfterValidator:
    """Return a check of a whole number, for the annotation of an option.

    An example: ``image_size: Annotated[int, multiple_of(16, "the side of a patch")] = 224``.

    Args:
        number: What the value has to be a multiple of.
        what: What `number` is, for the message.
    """

    def check(value: int, field: ValidationInfo) -> int:
        if value % number:
            raise ValueError(f"{field.field_name}={value} is not a multiple of {number}, {what}")
        return value

    return AfterValidator(check)


class VideoOptions(Info):
    """Base class for the settings of a backbone of video and text.

    A subclass may give a field another default or a narrower type, and another description in its docstring.

    Args:
        size: Size of the model; ``tiny`` for synthetic samples and first tries.
        weights: Start from this checkpoint: a published one, or ``backbone.safetensors`` of a run.
        vocabulary: vocab.txt of bert-base-uncased; None: from the Hugging Face cache (synthetic samples, and the tiny
            model without `weights`, use the words of the data set).
        text_length: Tokens per text, [CLS] and [SEP] included; longer texts are truncated.
        attention: Kernel of attention: ``fused`` (scaled dot product attention) or ``eager``.
        negatives: Texts and videos that losses use as negatives: those of ``all`` processes, or of the ``own`` one as
            released.
        pairs_per_pass: Largest number of pairs of video and text in one forward pass; None: all in training, 64 in
            evaluation.
        eval_batch_size: Videos per batch in evaluation.
        save_predictions: Write the prediction for every evaluated example.
    """

    size: str = "base"
    weights: Path | None = None
    vocabulary: Path | None = None
    text_length: int = Field(40, ge=3, le=512)
    attention: Literal["fused", "eager"] = "fused"
    negatives: Literal["all", "own"] = "all"
    pairs_per_pass: int | None = Field(None, ge=1)
    eval_batch_size: int = Field(16, ge=1)
    save_predictions: bool = True


class FrameOptions(VideoOptions):
    """Settings of a backbone that uses frames.

    Args:
        frames: Frames per clip.
        image_size: Side of a frame in pixels.
        frame_cache: A folder made by ``meltr data cache``; None: videos are decoded when they are needed.
        memory_mb: Keep frames in memory up to this many MiB (with ``data.workers=0``).
    """

    frames: int = Field(5, ge=1)
    image_size: int = Field(224, ge=1)
    frame_cache: Path | None = None
    memory_mb: int = Field(2048, ge=0)


def picked(settings: type[S], options: VideoOptions) -> S:
    """Return settings whose fields are options of the same names.

    Args:
        settings: A dataclass, such as the settings of a backbone's losses.
        options: The backbone's options, with a field for each field of `settings`.
    """
    names: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(settings)  # type: ignore[arg-type]
    return settings(**{each.name: getattr(options, each.name) for each in names})
