"""Load weights from a file of the user into a trunk."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from meltr.weights import FileKind, LoadReport, compare, copy_into, read_weights

_CHOOSE = "Set options.model (and options.shortcut) to the model that the file was made for."
_FILE = FileKind("a file of weights of this model", _CHOOSE, _CHOOSE)


def load_pretrained(trunk: nn.Module, path: Path) -> LoadReport:
    """Load the trunk's weights from a file; entries for other parts (a classifier) are not used.

    Args:
        trunk: The model without heads.
        path: A safetensors file or a state dict saved by torch (read with ``weights_only=True``). A ``trunk.`` prefix,
            as in the checkpoints of a run, is removed.

    Raises:
        UserError: If the file cannot be read, or does not fit the model.
    """
    state = read_weights(path)
    if any(key.startswith("trunk.") for key in state):
        state = {key.removeprefix("trunk."): value for key, value in state.items() if key.startswith("trunk.")}
    report = compare(trunk, state, source=path)
    _FILE.check_missing(report, state)
    _FILE.check_shapes(report)
    return copy_into(trunk, state, report)
