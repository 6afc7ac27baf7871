"""Settings of the UniVL backbone (``options.*``). Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from meltr.specs import Info


class UnivlOptions(Info):
    """Settings of the UniVL backbone.

    Args:
        size: ``base`` is the published model; ``tiny`` for miniatures and first tries.
        weights: Start from this checkpoint: ``univl.pretrained.bin``, or ``backbone.safetensors`` of a run.
        bert: Without `weights`: start the text encoder from bert-base-uncased (``model.safetensors``).
        vocabulary: vocab.txt of bert-base-uncased; None: from the Hugging Face cache (miniatures, and the tiny model
            without `weights`, take the words of the data set).
        text_length: W, tokens of a text, [CLS] and [SEP] included; longer ones are cut.
        caption_length: L, positions of the decoder; None: W, as released.
        video_length: F, vectors of a clip.
        video_dim: D, numbers of a vector; None: those of the features.
        features: A folder with a ``.npy`` for each video (``meltr data features`` makes one), a ``.pickle`` as UniVL's,
            or a ``.npz``; None: ``features`` below the data root, or UniVL's prepared files.
        extractor: What made the features, checked where they say so themselves; None: whatever they say.
        feature_rate: Vectors a second, where the features do not say so; None: 1.
        pick: Vectors of a longer clip: the ``first`` F, as released, or ``even``, F evenly spread ones.
        inputs: Captioning: from the video (``v``), or from video and transcript (``v+t``).
        no_text: Captioning: what the text encoder sees without a transcript. UniVL's prepared YouCook2 says ``none``.
        sentences: Training clips with several captions: ``all`` of them in each epoch, or ``one`` at random.
        prepared: Use UniVL's prepared files where the data root has them.
        workers: Processes that read features and texts; None: none for miniatures, else one a core, up to 4.
        eval_batch_size: Clips a batch of an evaluation.
        save_predictions: Write the prediction for every evaluated example.
    """

    size: Literal["base", "tiny"] = "base"
    weights: Path | None = None
    bert: Path | None = None
    vocabulary: Path | None = None
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
    workers: int | None = Field(None, ge=0)
    eval_batch_size: int = Field(16, ge=1)
    save_predictions: bool = True
