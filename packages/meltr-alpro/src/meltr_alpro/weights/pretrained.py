"""Load published weights. Every key of a file is accounted for in a `LoadReport`; no key is skipped silently."""

from __future__ import annotations

from pathlib import Path

from meltr.weights import FileKind, LoadReport, compare, copy_into, read_weights
from meltr_alpro.model.alpro import Alpro
from meltr_alpro.weights.official import PROMPTER, PROMPTS, TRUNK, fitted, renamed

PUBLISHED = "alpro_pretrained_ckpt.pt"
"""Name of the published checkpoint. The README of github.com/salesforce/ALPRO links to it (``output.zip``)."""

_CHECKPOINT = FileKind(
    "an ALPRO checkpoint",
    f"Give {PUBLISHED} or another checkpoint of the public code, or backbone.safetensors of a run with this backbone.",
    "Use it with a model of its own size: the published checkpoints are of size base.",
    (
        (("visual_encoder.", "text_encoder."), "a part of ALPRO"),
        (("enc_img.", "trsfr."), "a VIOLET checkpoint"),
        (("transformer.blocks.", "text_embeddings."), "an All-in-one checkpoint"),
        (("bert.", "visual.", "cross."), "a UniVL checkpoint"),
        (("bert.", "cls."), "BERT alone"),
        (("embeddings.", "encoder."), "BERT alone"),
    ),
)


def load_pretrained(model: Alpro, path: Path) -> LoadReport:
    """Load an ALPRO checkpoint of pre-training, retrieval or question answering, or one of a run.

    A head that has another shape in the file (answers of another data set) or is missing from it keeps its initial
    weights, and the report names it. An incomplete trunk, or an incomplete prompter of a model that has one, is an
    error. The tables of frames and patches are adapted to the model's, and the report says so.

    Args:
        model: The model; changed in place, but not if there is an error.
        path: ``alpro_pretrained_ckpt.pt``, another official file, or ``backbone.safetensors`` of a run.

    Raises:
        UserError: If the file cannot be read, or belongs to another model or another size.
    """
    state = read_weights(path)
    found, ignored, unexpected = renamed(state)
    if not any(name.startswith(TRUNK) for name in found):
        raise _CHECKPOINT.refusal(path, state, f"none of its {len(state)} tensors belongs to the trunk of one")
    ours, adapted = fitted(found, model.config)
    report = compare(model, ours, source=path, unexpected=unexpected, ignored=ignored, adapted=adapted)
    _CHECKPOINT.check_shapes(report, (*TRUNK, PROMPTER))
    _CHECKPOINT.check_missing(report, state, TRUNK, called="trunk")
    _CHECKPOINT.check_missing(report, state, (PROMPTER,), called="prompter")
    return copy_into(model, ours, report)


def why_no_prompter(path: Path | None) -> str | None:
    """Return why there is no prompter with its features of entities, which the loss ``pem`` needs; None if there is.

    Args:
        path: The checkpoint that a run starts from; None: none.

    Raises:
        UserError: If the file cannot be read.
    """
    if path is None:
        return f"it needs a checkpoint with a prompter (--set weights={PUBLISHED})"
    return None if PROMPTS in read_weights(path) else f"{path} holds no prompter"
