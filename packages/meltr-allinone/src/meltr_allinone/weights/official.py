"""Parameter names in files of the public repository showlab/all-in-one, mapped to ours and back.

Our names are the official ones, with a few exceptions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from meltr_allinone.model.config import SIZES, ModelConfig

LIGHTNING = ("pytorch_lightning.",)
"""Prefix of the callback classes that Lightning's checkpoints name. They are not needed."""

TRUNK = ("text_embeddings.", "token_type_embeddings.", "transformer.", "pooler.")
HEADS = ("mlm_score.", "itm_score.", "rank_output.", "txt_proj.", "vid_proj.", "vqa_classifier.")
POSITION_IDS = "text_embeddings.position_ids"
COMBINER = "aux_model."

WORDS = "text_embeddings.word_embeddings.weight"
TEXT_POSITIONS = "text_embeddings.position_embeddings.weight"
TYPES = "token_type_embeddings.weight"
TIMES = "transformer.temporal_embed"
PATCH_POSITIONS = "transformer.pos_embed"
PATCHES = "transformer.patch_embed.proj.weight"

_RENAMED = {"student.": "transformer.", "vtm_score.": "itm_score."}
_LEFT_OUT = {
    POSITION_IDS: "a constant index",
    "teacher.": "the teacher of co-training",
    COMBINER: "the loss transformer (see read_combiner)",
    "mpp_score.": "a head for masked patches",
    "vcop_classifier.": "a head for the order of frames",
    "mc_vqa_classifier.": "a head for multiple choice",
    "nlvr2_classifier.": "a head for pairs of images",
    "rank_output_2.": "a second ranking score",
}
_BLOCK = re.compile(r"transformer\.blocks\.(\d+)\.")


def renamed(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """Return tensors under our names; official key -> why it is not needed; and unknown keys.

    Args:
        state: State with official keys, or with ours.
    """
    ours: dict[str, Tensor] = {}
    left_out: dict[str, str] = {}
    unknown: list[str] = []
    two_layer_answers = any(key.startswith("vqa_classifier.0.") for key in state)
    for key, value in state.items():
        reason = next((why for prefix, why in _LEFT_OUT.items() if key.startswith(prefix)), None)
        name = _our_name(key)
        if reason is not None:
            left_out[key] = reason
        elif name.startswith("vqa_classifier.") and two_layer_answers:
            left_out[key] = "a head for VQA v2"
        elif not name.startswith((*TRUNK, *HEADS)):
            unknown.append(key)
        elif name != key and name in state:
            left_out[key] = f"the file also has {name}"
        else:
            ours[name] = value
    return ours, left_out, unknown


def _our_name(key: str) -> str:
    for official, ours in _RENAMED.items():
        if key.startswith(official):
            return ours + key.removeprefix(official)
    return key


def is_image_model(state: Mapping[str, Tensor]) -> bool:
    """Return True if a state belongs to a ViT of timm, without text embeddings."""
    tables = ("cls_token", "pos_embed", "patch_embed.proj.weight")
    return all(name in state for name in tables) and not any(key.startswith(TRUNK) for key in state)


def renamed_image_model(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a ViT of timm under our names, and key -> why it is not needed."""
    heads = {key: "a classifier of images" for key in state if key.startswith(("head", "pre_logits.", "fc_norm."))}
    return {f"transformer.{key}": value for key, value in state.items() if key not in heads}, heads


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model, as far as its state contains them; 0 elsewhere."""

    width: int = 0
    blocks: int = 0
    distilled: bool = False
    patch: int = 0
    patches: int = 0
    text_length: int = 0
    vocabulary: int = 0

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor]) -> Self:
        """Read the sizes from tensors under our names."""
        numbers = [int(found[1]) for key in state if (found := _BLOCK.match(key))]
        distilled = "transformer.dist_token" in state
        positions = _rows(state, PATCH_POSITIONS, axis=1)
        return cls(
            width=_rows(state, "transformer.cls_token", axis=2),
            blocks=1 + max(numbers, default=-1),
            distilled=distilled,
            patch=_rows(state, PATCHES, axis=2),
            patches=max(0, positions - (2 if distilled else 1)),
            text_length=_rows(state, TEXT_POSITIONS, axis=0),
            vocabulary=_rows(state, WORDS, axis=0),
        )

    @classmethod
    def of_model(cls, config: ModelConfig) -> Self:
        """Return the sizes of a model."""
        return cls(
            width=config.width,
            blocks=config.depth,
            distilled=config.distilled,
            patch=config.patch,
            patches=config.patches,
            text_length=config.text_length,
            vocabulary=config.vocabulary,
        )

    @property
    def trunk(self) -> Self:
        """The sizes that the name of a published size determines."""
        return replace(self, patch=0, patches=0, text_length=0, vocabulary=0)

    @property
    def name(self) -> str | None:
        """Name of the published size; None if it is not a published one."""
        return next((name for name, config in SIZES.items() if Sizes.of_model(config).trunk == self.trunk), None)

    def __str__(self) -> str:
        """Return width and depth, and the name of the published size if there is one."""
        known = "" if self.name is None else f" (size {self.name})"
        return f"width {self.width} with {self.blocks} blocks{', distilled' if self.distilled else ''}{known}"

    @property
    def side(self) -> int:
        """Side of a frame in pixels."""
        return int(self.patches**0.5) * self.patch


def _rows(state: Mapping[str, Tensor], name: str, *, axis: int) -> int:
    shape = state[name].shape if name in state else ()
    return int(shape[axis]) if len(shape) > axis else 0


def fitted(
    state: Mapping[str, Tensor], config: ModelConfig, *, ranks: bool = False
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Adapt a state to the model's numbers of frames, text positions and types, and return it with a list of changes.

    Args:
        state: Tensors under our names.
        config: Sizes of the model.
        ranks: True: the model ranks. If the file has no ranking score, it is set to the logit of a match.
    """
    ours, done = dict(state), {}
    for name, axis, wanted in ((TYPES, 0, 2), (TEXT_POSITIONS, 0, config.text_length)):
        if _rows(ours, name, axis=axis) > wanted:
            done[name] = f"the first {wanted} of {len(ours[name])} rows"
            ours[name] = ours[name][:wanted]
    frames = _rows(ours, TIMES, axis=1)
    if frames and frames != config.frames:
        rest = f"the first {config.frames} of {frames} frames"
        done[TIMES] = rest if frames > config.frames else f"{config.frames - frames} frames of zeros after {frames}"
        ours[TIMES] = with_frames(ours[TIMES], config.frames)
    if ranks and "rank_output.weight" not in ours and "itm_score.fc.weight" in ours:
        for part in ("weight", "bias"):
            ours[f"rank_output.{part}"] = ours[f"itm_score.fc.{part}"][1:]
            done[f"rank_output.{part}"] = "set to the itm_score of a match"
    return ours, done


def with_frames(times: Tensor, frames: int) -> Tensor:
    """Return a temporal embedding (1, T, D) for another number of frames: its first rows, padded with zeros."""
    return F.pad(times[:, :frames], (0, 0, 0, max(0, frames - times.shape[1])))


def official_state(state: Mapping[str, Tensor], *, combiner: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return our state with the keys that the public code expects.

    Args:
        state: State of an `AllInOne`.
        combiner: State of a `LossTransformer`, which MELTR's code stores with the model.
    """
    length = len(state[TEXT_POSITIONS])
    extra = {COMBINER + name: value for name, value in (combiner or {}).items()}
    return {**state, POSITION_IDS: torch.arange(length)[None], **extra}
