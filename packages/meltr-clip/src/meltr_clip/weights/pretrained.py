"""Weights by transformers' own loader, with a report on every tensor of the file and of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from meltr.errors import UserError
from meltr.weights import FileKind, LoadReport, compare, copy_into, read_weights, some
from meltr_clip.model.videomae import VideoMae
from meltr_clip.weights.parts import Parts, loading

TRUNKS = ("vision_model.", "text_model.", "videomae.encoder.", "videomae.embeddings.")
"""Parts without which a model is not the pretrained one."""

_CLASSES: dict[str, Any] = {
    "clip": transformers.CLIPModel,
    "siglip": transformers.SiglipModel,
    "siglip2": transformers.Siglip2Model,
    "videomae": VideoMae,
}
_RUN = FileKind(
    "a checkpoint of a run with this backbone",
    "Give backbone.safetensors of a run, or a model of transformers with --set model=NAME_OR_FOLDER.",
    "Start the run with the same --set model=... (or family and image_size) as the run of the checkpoint.",
    ((("vision_model.", "text_model."), "a CLIP or SigLIP of transformers"), (("videomae.",), "a VideoMAE")),
)
_KERNELS = {"fused": "sdpa", "eager": "eager"}


def random_towers(parts: Parts, *, attention: str) -> Any:
    """Return a model of transformers with random weights.

    Args:
        parts: Its configuration.
        attention: Kernel of attention, ``fused`` or ``eager``.
    """
    model = _CLASSES[parts.family](parts.config)
    model.set_attn_implementation(_KERNELS[attention])
    return model


def pretrained_towers(source: str | Path, parts: Parts, *, attention: str) -> tuple[Any, LoadReport]:
    """Return a model of transformers with its weights in float32, and the report of its loader.

    Files are safetensors, or pickles of tensors alone; no code in them is run.

    Args:
        source: Folder or name of the model.
        parts: Its configuration.
        attention: Kernel of attention, ``fused`` or ``eager``.

    Raises:
        UserError: If the weights cannot be read, have other shapes, or a tower is incomplete.
    """
    with loading(source):
        model, found = _CLASSES[parts.family].from_pretrained(
            source,
            config=parts.config,
            dtype=torch.float32,
            attn_implementation=_KERNELS[attention],
            output_loading_info=True,
            trust_remote_code=False,
            weights_only=True,
        )
    missing = sorted(found["missing_keys"])
    loaded = tuple(name for name in model.state_dict() if name not in found["missing_keys"])
    lacking = [name for name in missing if name.startswith(TRUNKS)]
    if lacking:
        raise UserError(
            f"{source} lacks {len(lacking)} weights of the model's towers: {some(lacking)}.",
            f"Give a whole {parts.family} model, with the weights of every tower.",
        )
    return model, LoadReport(str(source), loaded, tuple(missing), unexpected=tuple(sorted(found["unexpected_keys"])))


def load_run(model: nn.Module, path: Path) -> LoadReport:
    """Load ``backbone.safetensors`` of a run: its towers, and the heads that the model has too.

    Args:
        model: The model; changed in place, but not if there is an error.
        path: The file.

    Raises:
        UserError: If the file cannot be read, or its towers are not the model's.
    """
    state = read_weights(path)
    report = compare(model, state, source=path)
    _RUN.check_whole(report, state, ("towers.",))
    return copy_into(model, state, report)
