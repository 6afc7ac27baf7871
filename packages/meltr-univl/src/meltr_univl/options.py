"""Settings of the UniVL backbone (``options.*``). Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from meltr.video.options import VideoOptions


class UnivlOptions(VideoOptions):
    """Settings of the UniVL backbone.

    Args:
        size: ``base`` is the published model; ``tiny`` for synthetic samples and first tries.
        weights: Start from this checkpoint: ``univl.pretrained.bin``, or ``backbone.safetensors`` of a run.
        bert: Without `weights`: start the text encoder from bert-base-uncased (``model.safetensors``).
        caption_length: L, positions of the decoder; None: W, as released.
        video_length: F, vectors per clip.
        video_dim: D, dimension of a vector; None: that of the features.
        features: A folder with one ``.npy`` per video (``meltr data features`` makes one), a ``.pickle`` like UniVL's,
            or a ``.npz``; None: ``features`` below the data root, or UniVL's prepared files.
        extractor: Extractor of the features, checked if the features name theirs; None: any.
        feature_rate: Vectors per second, if the features do not say; None: 1.
        pick: Vectors of a longer clip: the ``first`` F, as released, or ``even``, F evenly spaced ones.
        inputs: Captioning: from the video (``v``), or from video and transcript (``v+t``).
        no_text: Captioning: text for the text encoder without a transcript. UniVL's prepared YouCook2 uses ``none``.
        sentences: Training clips with several captions: ``all`` of them in each epoch, or ``one`` at random.
        prepared: Use UniVL's prepared files if the data root has them.
        extractor_weights: Weights of the extractor, for ``meltr predict`` on videos (S3D of HowTo100M; torchvision's
            are found in the cache of torch.hub).
        scoring: How retrieval scores: ``align``, the cross encoder on every pair, or ``joint``, cosines of mean states.
        joint_loss: ``margin`` ranking of cosines, or ``mil_nce`` of dot products as in UniVL's pre-training.
        align_loss: ``cross_entropy`` of each text among the videos, or ``margin`` ranking as in UniVL's fine-tuning.
        margin: Margin of the ranking loss.
        negatives: Texts, videos and frames that losses use as negatives: those of ``all`` processes, or of the ``own``
            one as released.
        caption_padding: ``counted`` in the caption losses, as released (beam search relies on it), or ``ignored``.
        regression_loss: Loss of sentiment: ``l1`` or ``mse``.
        mask_probability: Fraction of the words and frames that is masked.
        at_least_one: Mask at least one word of every text and one frame of every clip, as MELTR's loaders do.
        text_lr_scale: Learning rate of the text encoder, relative to the others' (``coef_lr``).
        beams: Hypotheses of beam search.
        caption_tokens: How captions are tokenised for scoring: at white space, as the paper's scorer does, or ``ptb``,
            which needs Java.
        meteor: Also compute METEOR of captions, if Java is installed; it takes seconds to start at every evaluation.
        pairs_per_pass: Largest number of pairs of text and video in the cross encoder at once; None: all in training,
            128 in evaluation.
    """

    size: Literal["base", "tiny"] = "base"
    bert: Path | None = None
    text_length: int = Field(48, ge=3, le=512)
    caption_length: int | None = Field(None, ge=2, le=512)
    video_length: int = Field(48, ge=1, le=512)
    video_dim: int | None = Field(None, ge=1)
    features: Path | None = None
    extractor: str | None = None
    feature_rate: float | None = Field(None, gt=0)
    pick: Literal["first", "even"] = "first"
    inputs: Literal["v", "v+t"] = "v"
    no_text: str = ""
    sentences: Literal["all", "one"] = "all"
    prepared: bool = True
    extractor_weights: Path | None = None
    scoring: Literal["align", "joint"] = "align"
    joint_loss: Literal["margin", "mil_nce"] = "margin"
    align_loss: Literal["cross_entropy", "margin"] = "cross_entropy"
    margin: float = Field(0.1, ge=0)
    caption_padding: Literal["counted", "ignored"] = "counted"
    regression_loss: Literal["l1", "mse"] = "l1"
    mask_probability: float = Field(0.15, ge=0, le=1)
    at_least_one: bool = True
    text_lr_scale: float = Field(1.0, gt=0)
    beams: int = Field(5, ge=1)
    caption_tokens: Literal["whitespace", "ptb"] = "whitespace"
    meteor: bool = True
