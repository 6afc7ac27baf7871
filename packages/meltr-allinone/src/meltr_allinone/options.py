"""Settings of the All-in-one backbone (``options.*``). Imports no torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from meltr.video.options import FrameOptions


class AllInOneOptions(FrameOptions):
    """Settings of the All-in-one backbone.

    Args:
        size: ``base`` (All-in-one-B and -B+), ``small`` and ``ti`` as published; ``tiny`` for miniatures and first
            tries.
        weights: Start from this checkpoint: ``all-in-one-plus-224.ckpt`` or another official one, or
            ``backbone.safetensors`` of a run.
        frames: T, frames of a clip (3 as published).
        image_size: Side of a frame in pixels, a multiple of 16 (224 as published).
        text_length: L, tokens of a text, [CLS] and [SEP] included; longer ones are cut (40 as published).
        patch_order: Order of the patches of each frame in joint passes: ``random`` as published, which decides what
            token rolling exchanges, or ``raster``.
        sampling: Frames of a training clip: one of each of T segments, ``random`` (``released``: never the last of a
            segment, as in the public code) or ``uniform``, the middle.
        eval_sampling: The same in evaluation; the released code takes random frames there too.
        retrieval_views: Random clips of a video that a dual-encoder evaluation averages (3 as released).
        stored_frames: Draw training clips from so many even frames, which are decoded once and kept in memory; None:
            from all frames of a video, which is decoded at every visit (or read from a frame cache).
        augmentation: Of training clips: ``crop`` (one random place a clip, all that the released code does), ``none``,
            or ``strong`` (that of the co-training: RandAugment, sizes, mirror images; not where texts tell left from
            right).
        normalisation: Mean and deviation of colours: ``imagenet`` (released fine-tuning), ``kinetics`` (co-training of
            the B+ checkpoint), ``inception`` (timm's weights).
        whole_words: Masked language modelling hides whole words, as in pre-training.
        false_texts: Wrong captions that the rank loss compares with, of the data set (15 as released); 0: those of the
            batch.
        false_videos: Wrong videos of matching: of the ``batch``, or of the ``dataset`` as released, which decodes twice
            as many.
        false_items: Whose they are: of ``others``, or of ``any``, by chance the right one, as released.
        hard_negatives: With ``false_videos=batch``, draw wrong videos that resemble the text to the dual encoder (which
            learns only by the loss ``contrastive``).
        temperature: Similarities are divided by it in the contrastive loss.
        answer_lr_scale: Learning rate of the answer head, relative to the others' (10 in All-in-one's own settings).
        scoring: How retrieval scores a text and a video: ``dual`` (two embeddings); ``joint`` (a joint pass for every
            pair); ``rerank``, where a joint pass orders the best of the dual encoder anew; ``auto``: ``dual`` if the
            loss ``contrastive`` is on, else ``joint``.
        rerank: How many of the best are ordered anew.
        memory_mb: Frames are kept in memory up to this many MiB (with ``workers=0``), half of it for evaluation.
    """

    size: Literal["base", "small", "ti", "tiny"] = "base"
    frames: int = Field(3, ge=1)
    image_size: int = Field(224, ge=48)
    patch_order: Literal["random", "raster"] = "random"
    sampling: Literal["random", "released", "uniform"] = "random"
    eval_sampling: Literal["uniform", "random", "released"] = "uniform"
    retrieval_views: int = Field(1, ge=1)
    stored_frames: int | None = Field(None, ge=1)
    augmentation: Literal["crop", "none", "strong"] = "crop"
    normalisation: Literal["imagenet", "kinetics", "inception"] = "imagenet"
    whole_words: bool = False
    false_texts: int = Field(0, ge=0)
    false_videos: Literal["batch", "dataset"] = "batch"
    false_items: Literal["others", "any"] = "others"
    hard_negatives: bool = False
    temperature: float = Field(0.05, gt=0)
    answer_lr_scale: float = Field(1.0, gt=0)
    scoring: Literal["auto", "dual", "joint", "rerank"] = "auto"
    rerank: int = Field(50, ge=1)

    @field_validator("image_size")
    @classmethod
    def _whole_patches(cls, value: int) -> int:
        if value % 16:
            raise ValueError(f"image_size={value} is not a multiple of 16, the side of a patch")
        return value

    @model_validator(mode="after")
    def _frames_fit(self) -> Self:
        if self.stored_frames is not None and self.stored_frames < self.frames:
            raise ValueError(f"stored_frames={self.stored_frames} is less than frames={self.frames}")
        if self.hard_negatives and self.false_videos != "batch":
            raise ValueError("hard_negatives are chosen within a batch: they need false_videos=batch")
        if self.retrieval_views > 1 and self.eval_sampling == "uniform":
            raise ValueError(f"retrieval_views={self.retrieval_views} are the same clip with eval_sampling=uniform")
        return self
