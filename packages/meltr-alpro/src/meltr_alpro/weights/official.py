"""Parameter names of the published checkpoints, mapped to ours and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from meltr_alpro.model.config import ModelConfig

Layout = Literal["pretraining", "answering"]
"""Names of pre-training and retrieval (``text_encoder.bert.``), or of question answering (no head for masked text)."""

TRUNK = ("visual_encoder.", "text_encoder.")
HEADS = ("vision_proj.", "text_proj.", "itm_head.", "mlm_head.", "mpm_head.", "classifier.", "prompter.")
PROMPTER = "prompter."
PROMPTS = "prompter.video_prompt_feat"
WORDS = "text_encoder.embeddings.word_embeddings.weight"
TIMES = ("visual_encoder.time_embed", "prompter.visual_encoder.time_embed")
POSITIONS = ("visual_encoder.pos_embed", "prompter.visual_encoder.pos_embed")

_PREDICTIONS = "text_encoder.cls.predictions."
_RENAMED = (
    ("visual_encoder.model.", "visual_encoder."),
    ("text_encoder.bert.", "text_encoder."),
    (_PREDICTIONS, "mlm_head."),
)
_TIED = {f"{_PREDICTIONS}decoder.weight": WORDS, f"{_PREDICTIONS}decoder.bias": "mlm_head.bias"}
_LEFT_OUT = {
    "visual_encoder.model.head.": "a classifier of actions that is never used",
    "prompter.visual_encoder.model.head.": "a classifier of actions that is never used",
    "prompter.text_": "the prompter's text side, whose features of entities the file holds",
    "prompter.itm_head.": "a head that the prompter never uses",
    "prompter.image_prompt_feat": "features of entities for pictures",
}


def renamed(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """Return tensors under our names; official key -> why it is not needed; and unknown keys.

    A tied tensor (the decoder of masked text) is not needed if it equals the other one, and unknown if not.

    Args:
        state: State with official keys of either layout, or with ours.
    """
    ours: dict[str, Tensor] = {}
    left_out: dict[str, str] = {}
    unknown: list[str] = []
    for key, value in state.items():
        reason = next((why for prefix, why in _LEFT_OUT.items() if key.startswith(prefix)), None)
        if reason is not None:
            left_out[key] = reason
        elif key.endswith(".position_ids"):
            left_out[key] = "a constant index"
        elif key not in _TIED and (name := our_name(key)) is not None:
            ours[name] = value
        elif key not in _TIED:
            unknown.append(key)
    for key in _TIED.keys() & state.keys():
        if torch.equal(ours.get(_TIED[key], torch.empty(0)), state[key]):
            left_out[key] = "a second name for a tied tensor"
        else:
            unknown.append(key)
    return ours, left_out, unknown


def our_name(key: str) -> str | None:
    """Return our name for an official key or for one of our own; None if it is neither."""
    part, rest = (PROMPTER, key.removeprefix(PROMPTER)) if key.startswith(PROMPTER) else ("", key)
    for official, ours in _RENAMED:
        if rest.startswith(official):
            return part + ours + rest.removeprefix(official)
    known = ("temp", "video_prompt_feat") if part else ("temp",)
    return key if rest in known or rest.startswith((*TRUNK, *HEADS[:-1])) else None


def official_state(state: Mapping[str, Tensor], *, layout: Layout = "pretraining") -> dict[str, Tensor]:
    """Return our state with the keys that the public code expects.

    Args:
        state: State of an `Alpro`.
        layout: Layout of the result; ``answering`` has no head for masked text and no prompter.
    """
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        part, rest = (PROMPTER, name.removeprefix(PROMPTER)) if name.startswith(PROMPTER) else ("", name)
        if layout == "answering" and (part or rest.startswith(("mlm_head.", "mpm_head."))):
            continue
        for official, ours in _RENAMED:
            if rest.startswith(ours) and not (layout == "answering" and official == "text_encoder.bert."):
                rest = official + rest.removeprefix(ours)
                break
        found[part + rest] = value
    if layout == "pretraining" and "mlm_head.bias" in state:
        found |= {key: state[name] for key, name in _TIED.items()}
    embeddings = "text_encoder.bert.embeddings" if layout == "pretraining" else "text_encoder.embeddings"
    rows = len(state["text_encoder.embeddings.position_embeddings.weight"])
    return {**found, f"{embeddings}.position_ids": torch.arange(rows)[None]}


def fitted(state: Mapping[str, Tensor], config: ModelConfig) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Adapt a state to the model's number of frames and to its frame size, and return it with a list of changes.

    Both tables are resized by nearest neighbour as sequences, as in the released code: that of the frames, and that of
    the patches without the row of the cls token.

    Args:
        state: Tensors under our names.
        config: Sizes of the model.
    """
    ours, done = dict(state), {}
    for name in TIMES:
        if name in ours and ours[name].shape[1] != config.frames:
            done[name] = f"{ours[name].shape[1]} frames repeated or thinned out to {config.frames}"
            ours[name] = nearest(ours[name], config.frames)
    for name in POSITIONS:
        if name in ours and ours[name].shape[1] != 1 + config.patches:
            done[name] = f"{ours[name].shape[1] - 1} patches resized as a sequence to {config.patches}"
            ours[name] = torch.cat([ours[name][:, :1], nearest(ours[name][:, 1:], config.patches)], 1)
    return ours, done


def nearest(table: Tensor, rows: int) -> Tensor:
    """Return a table (1, R, D) with another number of rows, by nearest neighbour: row floor(i R / rows)."""
    return F.interpolate(table.mT, size=rows, mode="nearest").mT
