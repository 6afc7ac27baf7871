"""A golden set: tensors of an official model, and the sizes that are needed to compute them again."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

EXACTNESS = ((torch.float32, "fused"), (torch.float64, "fused"), (torch.float64, "eager"))
"""Number type and attention kernel: each pair computes every golden set once."""


class Tensors(dict[str, Tensor]):
    """The tensors of a file; a test that needs one which a part of a set does not have is skipped."""

    def __missing__(self, name: str) -> Tensor:
        pytest.skip(f"this golden set has no {name}")


class GoldenSet:
    """One golden set. A test that needs a file which the set does not have is skipped.

    Args:
        folder: Its folder, with ``config.json``.
        dtype: Type in which float32 tensors are returned.
    """

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float64) -> None:
        self.folder, self.dtype = folder, dtype
        self._tensors: dict[str, Tensors] = {}

    @property
    def name(self) -> str:
        """Folder and type, for the names of tests."""
        return f"{self.folder.name}-{str(self.dtype).removeprefix('torch.')}"

    def file(self, name: str) -> Path:
        """Return the path of a file of the set."""
        if not (self.folder / name).is_file():
            pytest.skip(f"{self.folder} has no {name}")
        return self.folder / name

    def json(self, name: str) -> Any:
        """Return the contents of a JSON file of the set."""
        return json.loads(self.file(name).read_text(encoding="utf-8"))

    @cached_property
    def config(self) -> dict[str, Any]:
        """The set's description."""
        return self.json("config.json")

    def tensors(self, name: str) -> Tensors:
        """Return the tensors of ``NAME.safetensors``, read once."""
        if name not in self._tensors:
            loaded = load_file(self.file(f"{name}.safetensors"))
            self._tensors[name] = Tensors({key: self.converted(key, tensor) for key, tensor in loaded.items()})
        return self._tensors[name]

    def converted(self, key: str, tensor: Tensor) -> Tensor:
        """Return a stored tensor as tests use it."""
        return tensor.to(self.dtype) if tensor.dtype == torch.float32 else tensor

    @property
    def inputs(self) -> Tensors:
        """What the model was given."""
        return self.tensors("inputs")


def exactly(folders: list[Path]) -> dict[str, Any]:
    """Return the parameters of a fixture that gives each golden set in each of `EXACTNESS`: (folder, type, kernel)."""
    sets = [(folder, *kind) for folder in folders for kind in EXACTNESS]
    names = [f"{GoldenSet(folder, dtype).name}-{kernel}" for folder, dtype, kernel in sets]
    return {"params": sets, "ids": names}
