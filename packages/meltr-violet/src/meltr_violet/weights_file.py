"""Read a file of weights without running code from it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from meltr.errors import UserError

_WRAPPERS = ("state_dict", "model", "module")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return names and tensors of a safetensors file or of a state dict that torch saved.

    A state dict may lie inside a checkpoint under ``state_dict`` or ``model``; a ``module.`` prefix is taken off.

    Args:
        path: The file.

    Raises:
        UserError: If it is not there, is broken, or holds anything but a state dict.
    """
    if not path.is_file():
        raise UserError(f"There is no file of weights {path}.", "Check the path.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file can make either reader raise anything
        cause = str(error).strip().splitlines()[0] if str(error).strip() else "no details"
        raise UserError(
            f"{path} cannot be read ({path.stat().st_size:,} bytes): {type(error).__name__}: {cause}",
            "Give a .safetensors file, or a state dict saved with torch.save. A file that is too short was not copied "
            "to its end: get it again.",
        ) from error
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} holds no state dict.", "Give a file with names and tensors, nothing else.")
    return {str(key).removeprefix("module."): value for key, value in content.items()}
