"""Settings of the All-in-one backbone (``options.*``). Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from meltr.video.options import FrameOptions, multiple_of


class AllInOneOptions(FrameOptions):
    """Settings of the All-in-one backbone.

    Args:
        size: ``base`` (All-in-one-B and -B+), ``small`` and ``ti`` as published; ``tiny`` for synthetic samples and
            first tries.
        weights: Start from this checkpoint: ``all-in-one-plus-224.ckpt`` or another official one, or
            ``backbone.safetensors`` of a run.
        frames: T, frames per clip (3 as published).
        image_size: Side of a frame in pixels, a multiple of 16 (224 as published).
        text_length: L, tokens per text, [CLS] and [SEP] included; longer ones are truncated (40 as published).
        patch_order: Order of the patches of each frame in joint passes: ``random`` as published, which decides what
            token rolling exchanges, or ``raster``.
        sampling: Frame of each of T segments in a training clip: ``random`` (``released``: never the last of a segment,
            as in the public code) or ``uniform``, the middle.
        eval_sampling: The same in evaluation; the released code samples randomly there too.
        retrieval_views: Number of random clips per video that dual-encoder evaluation averages over (3 as released).
        stored_frames: Sample training clips from this many evenly spaced frames, which are decoded once and kept in
            memory;
            None: from all frames of a video, which is decoded at every visit (or read from a frame cache).
        augmentation: Augmentation of training clips: ``crop`` (one random crop per clip, as in the released code),
            ``none``, or ``strong`` (as in the co-training: RandAugment, sizes, mirror images; unsuitable for texts that
            distinguish left and right).
        normalisation: Mean and deviation of colours: ``imagenet`` (released fine-tuning), ``kinetics`` (co-training of
            the B+ checkpoint), ``inception`` (timm's weights).
        whole_words: Masked language modelling masks whole words, as in pre-training.
        false_texts: Number of wrong captions from the data set for the rank loss (15 as released); 0: those of the
            batch.
        false_videos: Wrong videos for matching: from the ``batch``, or from the ``dataset`` as released, which decodes
            twice as many.
        false_items: Wrong items are of ``others``, or of ``any`` video, by chance the right one, as released.
        hard_negatives: With ``false_videos=batch``, choose wrong videos that the dual encoder finds similar to the text
            (it is trained only by the loss ``contrastive``).
        temperature: The contrastive loss divides similarities by this number.
        answer_lr_scale: Learning rate of the answer head, relative to the others' (10 in All-in-one's own settings).
        scoring: How retrieval scores a text and a video: ``dual`` (two embeddings); ``joint`` (one joint pass per
            pair); ``rerank`` (joint passes re-rank the dual encoder's best); ``auto``: ``dual`` if the loss
            ``contrastive`` is in use, else ``joint``.
        rerank: Number of best candidates to re-rank.
        memory_mb: Keep frames in memory up to this many MiB (with ``data.workers=0``), half of it for evaluation.
    """

    size: Literal["base", "small", "ti", "tiny"] = "base"
    frames: int = Field(3, ge=1)
    image_size: Annotated[int, multiple_of(16, "the side of a patch")] = Field(224, ge=48)
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

    @model_validator(mode="after")
    def _frames_fit(self) -> Self:
        if self.stored_frames is not None and self.stored_frames < self.frames:
            raise ValueError(f"stored_frames={self.stored_frames} is less than frames={self.frames}")
        if self.hard_negatives and self.false_videos != "batch":
            raise ValueError("hard_negatives are chosen within a batch: they need false_videos=batch")
        if self.retrieval_views > 1 and self.eval_sampling == "uniform":
            raise ValueError(f"retrieval_views={self.retrieval_views} are the same clip with eval_sampling=uniform")
        return self
