"""Start from published weights: a UniVL checkpoint, whole or of fewer modules, or BERT alone; and write them back.

Every key of a file is accounted for in a `LoadReport`. Nothing is left out silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from meltr.errors import UserError
from meltr.weights import FileKind, LoadReport, compare, copy_into, read_weights
from meltr_univl.model.config import ModelConfig
from meltr_univl.model.univl import Univl
from meltr_univl.weights.official import FRAMES, POSITIONS, WORDS, from_official

ENCODERS = ("bert.", "visual.", "normalize_video.")
"""What every UniVL checkpoint has."""

_KNOWN = (
    (("bert.", "visual."), "a part of UniVL"),
    (("enc_img.", "trsfr."), "a VIOLET checkpoint"),
    (("visual_encoder.", "text_encoder."), "an ALPRO checkpoint"),
    (("transformer.blocks.", "text_embeddings."), "an All-in-one checkpoint"),
    (("bert.", "cls."), "BERT alone (use it with --set bert=FILE)"),
    (("embeddings.", "encoder."), "BERT alone (use it with --set bert=FILE)"),
)

_CHECKPOINT = FileKind(
    "a UniVL checkpoint",
    "Give univl.pretrained.bin or another file of the public code, or backbone.safetensors of a run with this "
    "backbone.",
    "Use it with the model it was made for: the published checkpoint is of size base.",
    _KNOWN,
)

_BERT = FileKind(
    "BERT of this size",
    "Give model.safetensors of bert-base-uncased, with --set size=base.",
    "Use --set size=base.",
    _KNOWN,
)


def load_pretrained(model: Univl, path: Path) -> LoadReport:
    """Load a UniVL checkpoint: ``univl.pretrained.bin``, one of its fine-tuning or of MELTR's, or of a run.

    Files of fine-tuning hold fewer modules: what they lack beside the encoders stays as initialised, and is named.

    Args:
        model: The model; changed in place, but not if there is an error.
        path: The file.

    Raises:
        UserError: If it cannot be read, or is that of another model or of another size.
    """
    state = read_weights(path)
    ours, ignored = from_official(state)
    if not any(name.startswith("visual.") for name in ours):
        raise _CHECKPOINT.refusal(path, state, f"none of its {len(state)} tensors belongs to a visual encoder")
    report = compare(model, ours, source=path, ignored=ignored)
    report = _tell_unknown(report, ours)
    _check_sizes(model.config, ours, report, path)
    _CHECKPOINT.check_missing(report, state, ENCODERS, called="encoders")
    return copy_into(model, ours, report)


def load_bert(model: Univl, path: Path) -> LoadReport:
    """Load BERT (``model.safetensors`` or ``pytorch_model.bin`` of bert-base-uncased): text encoder and word head.

    Args:
        model: The model; changed in place, but not if there is an error.
        path: The file.

    Raises:
        UserError: If it cannot be read, or is not BERT of this size.
    """
    state = read_weights(path)
    named = {key if key.startswith(("bert.", "cls.")) else f"bert.{key}": value for key, value in state.items()}
    ours, ignored = from_official(named)
    report = compare(model, ours, source=path, ignored=ignored).about(("bert.", "cls."))
    _BERT.check_whole(report, state, ("bert.",))
    return copy_into(model, ours, report)


def _tell_unknown(report: LoadReport, ours: Mapping[str, Tensor]) -> LoadReport:
    """Return the report with keys of no module of UniVL counted as unknown, not as parts that the model lacks."""
    known = (*ENCODERS, "cross.", "decoder.", "cls.", "cls_visual.", "similarity_dense.", "score_dense.")
    unknown = tuple(name for name in ours if not name.startswith(known))
    kept = {key: why for key, why in report.ignored.items() if key not in unknown}
    return replace(report, unexpected=(*report.unexpected, *unknown), ignored=kept)


def _check_sizes(config: ModelConfig, ours: Mapping[str, Tensor], report: LoadReport, path: Path) -> None:
    if not report.reshaped:
        return
    frames, words = ours.get(FRAMES), ours.get(WORDS)
    if frames is not None and frames.shape[0] == config.width and frames.shape[1] != config.video_dim:
        raise UserError(
            f"{path} was made for features of {frames.shape[1]} numbers, those of this run have {config.video_dim}.",
            "Use features of the same extractor: for univl.pretrained.bin S3D of HowTo100M (meltr data features).",
        )
    if words is not None and words.shape[1] == config.width and words.shape[0] != config.vocabulary:
        raise UserError(
            f"{path} has a vocabulary of {words.shape[0]:,} tokens, the model one of {config.vocabulary:,}.",
            "Give the vocabulary that it was trained with: --set vocabulary=FILE (vocab.txt of bert-base-uncased for "
            "the published checkpoint, vocabulary.txt of its folder for a run's).",
        )
    places = ours.get(POSITIONS)
    _CHECKPOINT.check_shapes(report, size="" if places is None else f"{places.shape[1]} wide")
