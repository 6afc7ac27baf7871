"""Load published weights (VIOLET's own checkpoint, or Video Swin and BERT separately), and export them.

Every key of a file is accounted for in a `LoadReport`. No key is skipped silently.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from meltr.errors import UserError
from meltr.weights import LoadReport, compare, copy_into, looks_like, read_weights
from meltr_violet.model.violet import Violet
from meltr_violet.weights.official import TIED_BIAS, from_official, is_index, to_official

Fc = Literal["vtm", "answer", "choice", "none"]
"""Head that receives the key ``fc`` of an official file; ``none``: no head, as in MELTR's answering code."""

OURS = ("video.", "text.", "cross.")


def load_checkpoint(model: Violet, path: Path, *, fc: Fc = "vtm") -> LoadReport:
    """Load a VIOLET checkpoint with official keys or with the keys of a meltr run.

    A head that has another shape in the file (answers of another data set) or is missing from it keeps its initial
    weights, and the report names it. An incomplete trunk is an error.

    Args:
        model: The model; changed in place.
        path: ``ckpt_violet_pretrain.pt``, a safetensors file with the same keys, or ``backbone.safetensors`` of a run.
        fc: Head that receives the official key ``fc``. The pre-trained one scores matching.

    Raises:
        UserError: If the file cannot be read, or belongs to another model or another size.
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
            ignored[key] = "a second name for the decoder's bias"
        else:
            renamed["mtm.decoder.bias" if key == TIED_BIAS else name] = value
    report = compare(model, renamed, source=path, unexpected=unexpected, ignored=ignored, skip=is_index)
    _check_trunk(model, report, state, path)
    return copy_into(model, renamed, report)


def _our_name(key: str, state: Mapping[str, Tensor], fc: Fc) -> str | None:
    """Return our name for a key, "" for a head that is not wanted, None for an unknown key."""
    if key.startswith("fc."):
        taken = fc == "vtm" and any(other.startswith("fc_vtm.") for other in state)
        return "" if fc == "none" or taken else from_official(key, fc=fc)
    if key.startswith((*OURS, "vtm.", "mtm.", "mvm.", "answer.", "choice.")):
        return key
    return from_official(key)


def _check_trunk(model: nn.Module, report: LoadReport, state: Mapping[str, Tensor], path: Path) -> None:
    trunk = [name for name in model.state_dict() if name.startswith(OURS) and not is_index(name)]
    loaded = set(report.loaded)
    if all(name in loaded for name in trunk):
        return
    wrong = [name for name in trunk if name in report.reshaped]
    if wrong:
        have, want = report.reshaped[wrong[0]]
        raise UserError(
            f"{path} is a VIOLET checkpoint of another size: {len(wrong)} of {len(trunk)} tensors of the trunk have "
            f"another shape (first: {wrong[0]} is {list(have)}, the model's {list(want)}).",
            "Use it with a model of its size: the published checkpoint has size base.",
        )
    absent = [name for name in trunk if name not in loaded]
    raise UserError(
        f"{path} is not a VIOLET checkpoint: it lacks {len(absent)} of {len(trunk)} tensors of the trunk "
        f"(first: {absent[0]}). It looks like {looks_like(state, _KNOWN)}.",
        "Give ckpt_violet_pretrain.pt, or the backbone.safetensors of a run with this backbone.",
    )


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


def load_video_swin(model: Violet, path: Path) -> LoadReport:
    """Load a Video Swin file (``ckpt_video-swin.pt``, or one of the Video Swin authors) into the video branch.

    Args:
        model: The model; changed in place.
        path: The file. Keys may have a prefix ``backbone.``; a classifier is skipped.

    Raises:
        UserError: If the file cannot be read, or does not fit the video branch.
    """
    return _load_part(model, path, prefix="video.swin.", rename=_swin_name, what="Video Swin")


def load_bert(model: Violet, path: Path) -> LoadReport:
    """Load BERT (``model.safetensors`` or ``pytorch_model.bin`` of bert-base-uncased).

    It fills the text embedding, the transformer and the masked text head. If the file has no decoder, the decoder of
    that head is set to the word embeddings.

    Args:
        model: The model; changed in place.
        path: The file.

    Raises:
        UserError: If the file cannot be read, or is not BERT of this size.
    """
    report = _load_part(model, path, prefix=("text.", "cross.", "mtm."), rename=_bert_name, what="BERT")
    if model.mtm is not None and "mtm.decoder.weight" in report.missing:
        with torch.no_grad():
            model.mtm.decoder.weight.copy_(model.text.word_embeddings.weight)
    return report


def _load_part(
    model: Violet, path: Path, *, prefix: str | tuple[str, ...], rename: Callable[[str], str | None], what: str
) -> LoadReport:
    state = read_weights(path)
    names = {key: rename(key) for key in state}
    renamed = {name: state[key] for key, name in names.items() if name is not None and not is_index(key)}
    ignored = {key: "not needed" for key, name in names.items() if name is None or is_index(key)}
    whole = compare(model, renamed, source=path, ignored=ignored, skip=is_index)
    missing = tuple(name for name in whole.missing if name.startswith(prefix))
    report = replace(whole, missing=missing)
    lacking = [name for name in (*missing, *whole.reshaped) if name.startswith(OURS)]
    if lacking:
        raise UserError(
            f"{path} is not {what} of this size: {len(lacking)} tensors are missing or have another shape "
            f"(first: {lacking[0]}). It looks like {looks_like(state, _KNOWN)}.",
            f"Give a {what} file with the sizes of this model.",
        )
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
    """Return the weights with their official keys, so that the original code can load them.

    Args:
        model: The model.
        vtm: The official name of the matching head: ``fc`` (pre-training, retrieval), ``fc_vtm`` (MELTR's answering).
    """
    state = {to_official(name, vtm=vtm): value for name, value in model.state_dict().items()}
    tied = TIED_BIAS.replace("bias", "decoder.bias")
    if tied in state:
        state[TIED_BIAS] = state[tied]
    return state
