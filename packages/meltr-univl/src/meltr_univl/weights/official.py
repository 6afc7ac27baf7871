"""Parameter names of the published checkpoint: tensors with several names, and old names of BERT."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

WORDS = "bert.embeddings.word_embeddings.weight"
POSITIONS = "bert.embeddings.position_embeddings.weight"
FRAMES = "visual.embeddings.word_embeddings.weight"

ALIASES = {
    "decoder.embeddings.word_embeddings.weight": WORDS,
    "decoder.classifier.cls.predictions.decoder.weight": WORDS,
    "cls.predictions.decoder.weight": WORDS,
    "decoder.embeddings.position_embeddings.weight": POSITIONS,
    "cls_visual.predictions.weight": FRAMES,
}
"""Second name of a tensor -> our name. If the tensors differ, the last one wins, as when the released code copies."""


def modern(key: str) -> str:
    """Return `key` with BERT's old names of LayerNorm parameters replaced."""
    return key.replace("gamma", "weight").replace("beta", "bias")


def from_official(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the state under our names, and second name -> why it is skipped.

    Args:
        state: State with official keys.
    """
    ours = {modern(key): value for key, value in state.items()}
    left_out: dict[str, str] = {}
    for alias, name in ALIASES.items():
        if alias not in ours:
            continue
        value = ours.pop(alias)
        same = name not in ours or (value.shape == ours[name].shape and torch.equal(value, ours[name]))
        left_out[alias] = "a second name" if same else f"a second name of {name}, which differs and was used"
        ours[name] = value
    return ours, left_out


def official_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state of our model with the official keys, including second names of modules that it has.

    Args:
        state: State with our names.
    """
    found = dict(state)
    for alias, name in ALIASES.items():
        if any(key.startswith(alias.split(".")[0] + ".") for key in state):
            found[alias] = state[name]
    return found
