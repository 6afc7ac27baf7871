"""Parameter names of the published checkpoints, mapped to ours and back."""

from __future__ import annotations

import re

_STAGE = re.compile(r"layers\.(\d+)\.(blocks|downsample)\.")
_TRUNK = (
    ("enc_img.", "video."),
    ("enc_txt.emb_txt.", "text."),
    ("trsfr.", "cross."),
    ("fc_mtm.predictions.", "mtm."),
    ("fc_mvm.", "mvm."),
    ("fc_vtm.", "vtm."),
    ("fc_oe.", "answer."),
    ("fc_mc.", "choice."),
)
TIED_BIAS = "fc_mtm.predictions.bias"
"""Second name of ``fc_mtm.predictions.decoder.bias``: both are one parameter in the original."""

_INDEX = ("relative_position_index", "position_ids", "token_type_ids")


def is_index(key: str) -> bool:
    """Return True if `key` names an index buffer. Such a buffer is constant and may be missing."""
    return key.rpartition(".")[2] in _INDEX


def from_official(key: str, *, fc: str = "vtm") -> str | None:
    """Return our name for an official key, or None if the key does not belong to VIOLET.

    Args:
        key: The official name.
        fc: Our head for the key ``fc``: ``vtm`` in pre-training and retrieval checkpoints, ``answer`` or ``choice`` in
            the original's fine-tuned ones.
    """
    prefixes = (*_TRUNK, ("fc.", f"{fc}."))
    for official, ours in prefixes:
        if key.startswith(official):
            return ours + _swin_from_official(key.removeprefix(official))
    return None


def to_official(name: str, *, vtm: str = "fc") -> str:
    """Return the official key for one of our names.

    Args:
        name: Our name for a parameter or buffer.
        vtm: The official name of the matching head: ``fc`` (pre-training, retrieval), ``fc_vtm`` (MELTR's answering).

    Raises:
        KeyError: If `name` is not one of our names.
    """
    for official, ours in (("fc_vtm." if vtm == "fc_vtm" else "fc.", "vtm."), *_TRUNK):
        if name.startswith(ours):
            return official + _swin_to_official(name.removeprefix(ours))
    raise KeyError(name)


def _swin_from_official(rest: str) -> str:
    """Map ``swin.layers.s.blocks.b.mlp.fc1`` to ``swin.features.2s.b.mlp.0``, and the other Swin keys alike."""
    found = _STAGE.search(rest)
    if found is None:
        return rest
    stage, after = int(found[1]), rest[found.end() :]
    if found[2] == "downsample":
        return f"swin.features.{2 * stage + 1}.{after}"
    return f"swin.features.{2 * stage}.{after.replace('mlp.fc1.', 'mlp.0.').replace('mlp.fc2.', 'mlp.3.')}"


def _swin_to_official(rest: str) -> str:
    if not rest.startswith("swin.features."):
        return rest
    place, after = rest.removeprefix("swin.features.").split(".", 1)
    stage, odd = divmod(int(place), 2)
    if odd:
        return f"swin.layers.{stage}.downsample.{after}"
    return f"swin.layers.{stage}.blocks.{after.replace('mlp.0.', 'mlp.fc1.').replace('mlp.3.', 'mlp.fc2.')}"
