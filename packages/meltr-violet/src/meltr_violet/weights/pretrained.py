"""Start from published weights: VIOLET's own checkpoint, or Video Swin and BERT by themselves; and write them back.

Every key of a file is accounted for in a `LoadReport`. Nothing is left out silently.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from meltr.weights import FileKind, LoadReport, compare, copy_into, read_weights
from meltr_violet.model.violet import Violet
from meltr_violet.weights.official import TIED_BIAS, from_official, is_index, to_official

Fc = Literal["vtm", "answer", "choice", "none"]
"""Which head takes the key ``fc`` of an official file; ``none``: no head, as MELTR's answering code does."""

OURS = ("video.", "text.", "cross.")

_KNOWN = (
    (("enc_img.", "trsfr."), "a part of VIOLET"),
    (("bert.", "visual.", "cross.", "decoder."), "a UniVL checkpoint"),
    (("visual_encoder.", "text_encoder."), "an ALPRO checkpoint"),
    (("transformer.blocks.", "text_embeddings."), "an All-in-one checkpoint"),
    (("patch_embed.", "layers."), "Video Swin alone (load it with load_video_swin)"),
    (("backbone.",), "Video Swin alone (load it with load_video_swin)"),
    (("bert.", "cls."), "BERT alone (load it with load_bert)"),
    (("embeddings.", "encoder."), "BERT alone (load it with load_bert)"),
)

_CHECKPOINT = FileKind(
    "a VIOLET checkpoint",
    "Give ckpt_violet_pretrain.pt, or a backbone.safetensors of a run with this backbone.",
    "Use it with the model it was made for: the published checkpoint is of size base.",
    _KNOWN,
)


def load_checkpoint(model: Violet, path: Path, *, fc: Fc = "vtm") -> LoadReport:
    """Load a VIOLET checkpoint: official keys, or those of a run of meltr.

    A head of another shape (answers of another data set) and a head that the file lacks stay as initialised and are
    named in the report; a trunk that is incomplete is an error.

    Args:
        model: The model; changed in place.
        path: ``ckpt_violet_pretrain.pt``, a safetensors file of the same keys, or ``backbone.safetensors`` of a run.
        fc: Which head takes the official key ``fc``. The pre-trained one scores matching.

    Raises:
        UserError: If the file cannot be read, or is that of another model or of another size.
    """
    state = read_weights(path)
    renamed: dict[str, Tensor] = {}
    ignored: dict[str, str] = {}
    unexpected: list[str] = []
    for key, value in state.items():
        name = _our_name(key, state, fc)
        if name is None:
            unexpected.append(key)
        elif name == "":
            ignored[key] = "its head is not used (fc=none)"
        elif is_index(key):
            ignored[key] = "a constant index"
        elif key == TIED_BIAS and TIED_BIAS.replace("bias", "decoder.bias") in state:
            ignored[key] = "a second name of the decoder's bias"
        else:
            renamed["mtm.decoder.bias" if key == TIED_BIAS else name] = value
    report = compare(model, renamed, source=path, unexpected=unexpected, ignored=ignored, skip=is_index)
    _CHECKPOINT.check_shapes(report, OURS)
    _CHECKPOINT.check_missing(report, state, OURS, called="trunk")
    return copy_into(model, renamed, report)


def _our_name(key: str, state: Mapping[str, Tensor], fc: Fc) -> str | None:
    """Return our name of a key, "" for a head that is not wanted, None for an unknown key."""
    if key.startswith("fc."):
        taken = fc == "vtm" and any(other.startswith("fc_vtm.") for other in state)
        return "" if fc == "none" or taken else from_official(key, fc=fc)
    if key.startswith((*OURS, "vtm.", "mtm.", "mvm.", "answer.", "choice.")):
        return key
    return from_official(key)


def load_video_swin(model: Violet, path: Path) -> LoadReport:
    """Load a Video Swin file (``ckpt_video-swin.pt``, or one of the Video Swin authors) into the video branch.

    Args:
        model: The model; changed in place.
        path: The file; keys may have a prefix ``backbone.``, and a classifier is left out.

    Raises:
        UserError: If it cannot be read, or does not fit the video branch.
    """
    return _load_part(model, path, prefix=("video.swin.",), rename=_swin_name, what="Video Swin")


def load_bert(model: Violet, path: Path) -> LoadReport:
    """Load BERT (``model.safetensors`` or ``pytorch_model.bin`` of bert-base-uncased).

    Into text embedding, transformer and masked text head; its decoder starts equal to the word embeddings if the file
    has none.

    Args:
        model: The model; changed in place.
        path: The file.

    Raises:
        UserError: If it cannot be read, or is not BERT of this size.
    """
    report = _load_part(model, path, prefix=("text.", "cross.", "mtm."), rename=_bert_name, what="BERT")
    if model.mtm is not None and "mtm.decoder.weight" in report.missing:
        with torch.no_grad():
            model.mtm.decoder.weight.copy_(model.text.word_embeddings.weight)
    return report


def _load_part(
    model: Violet, path: Path, *, prefix: tuple[str, ...], rename: Callable[[str], str | None], what: str
) -> LoadReport:
    state = read_weights(path)
    names = {key: rename(key) for key in state}
    renamed = {name: state[key] for key, name in names.items() if name is not None and not is_index(key)}
    ignored = {key: "not needed" for key, name in names.items() if name is None or is_index(key)}
    report = compare(model, renamed, source=path, ignored=ignored, skip=is_index).about(prefix)
    hint = f"Give a file of {what} that was made for the sizes of this model."
    FileKind(f"{what} of this size", hint, hint, _KNOWN).check_whole(report, state, OURS)
    return copy_into(model, renamed, report)


def _swin_name(key: str) -> str | None:
    key = key.removeprefix("backbone.")
    if key.startswith(("features.", "patch_embed.", "norm.")):  # torchvision's own names
        return f"video.swin.{key}"
    return from_official(f"enc_img.swin.{key}") if key.startswith("layers.") else None


def _bert_name(key: str) -> str | None:
    key = key.removeprefix("bert.").replace(".gamma", ".weight").replace(".beta", ".bias")
    if key.startswith("embeddings."):
        return "text." + key.removeprefix("embeddings.")
    if key.startswith("encoder."):
        return "cross." + key.removeprefix("encoder.")
    if key == "cls.predictions.bias":
        return "mtm.decoder.bias"
    if key.startswith("cls.predictions."):
        return "mtm." + key.removeprefix("cls.predictions.")
    return None


def official_state(model: Violet, *, vtm: Literal["fc", "fc_vtm"] = "fc") -> dict[str, Tensor]:
    """Return the weights under their official keys, so that the original code can load them.

    Args:
        model: The model.
        vtm: The official name of the matching head: ``fc`` (pre-training, retrieval), ``fc_vtm`` (MELTR's answering).
    """
    state = {to_official(name, vtm=vtm): value for name, value in model.state_dict().items()}
    tied = TIED_BIAS.replace("bias", "decoder.bias")
    if tied in state:
        state[TIED_BIAS] = state[tied]
    return state
