"""Settings of the All-in-one backbone (``options.*``). Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from meltr.specs import Info


class AllInOneOptions(Info):
    """Settings of the All-in-one backbone.

    Args:
        size: ``base`` (All-in-one-B and -B+), ``small`` and ``tiny`` as published; ``mini`` for miniatures and first
            tries.
        weights: Start from this checkpoint: ``all-in-one-plus-224.ckpt`` or another official one, or
            ``backbone.safetensors`` of a run.
        vocabulary: vocab.txt of bert-base-uncased; None: from the Hugging Face cache (miniatures, and the mini model
            without `weights`, take the words of the data set).
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
        negatives: Texts and videos that the contrastive loss compares with: of ``all`` processes, or of the ``own`` one
            as released.
        temperature: Similarities are divided by it in the contrastive loss.
        answer_lr_scale: Learning rate of the answer head, relative to the others' (10 in All-in-one's own settings).
        attention: Kernel of attention: ``fused``, or ``eager``.
        scoring: How retrieval scores a text and a video: ``dual`` (two embeddings); ``joint`` (a joint pass for every
            pair); ``rerank``, where a joint pass orders the best of the dual encoder anew; ``auto``: ``dual`` if the
            loss ``contrastive`` is on, else ``joint``.
        rerank: How many of the best are ordered anew.
        frame_cache: A folder that ``meltr data cache`` made; None: videos are decoded when they are needed.
        workers: Processes that read and decode; None: none if frames stay in memory, else one a core.
        memory_mb: Frames are kept in memory up to this many MiB (with ``workers=0``), half of it for evaluation.
        eval_batch_size: Clips a batch of an evaluation.
        pairs_per_pass: Most pairs of clip and text that go through the model at a time; None: all while training, 64 in
            evaluation.
        save_predictions: Write the prediction for every evaluated example.
    """

    size: Literal["base", "small", "tiny", "mini"] = "base"
    weights: Path | None = None
    vocabulary: Path | None = None
    frames: int = Field(3, ge=1)
    image_size: int = Field(224, ge=48)
    text_length: int = Field(40, ge=3, le=512)
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
    negatives: Literal["all", "own"] = "all"
    temperature: float = Field(0.05, gt=0)
    answer_lr_scale: float = Field(1.0, gt=0)
    attention: Literal["fused", "eager"] = "fused"
    scoring: Literal["auto", "dual", "joint", "rerank"] = "auto"
    rerank: int = Field(50, ge=1)
    frame_cache: Path | None = None
    workers: int | None = Field(None, ge=0)
    memory_mb: int = Field(2048, ge=0)
    eval_batch_size: int = Field(16, ge=1)
    pairs_per_pass: int | None = Field(None, ge=1)
    save_predictions: bool = True

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
