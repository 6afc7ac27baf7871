"""The folder of a run: names of its files, and writing them whole."""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from meltr.errors import UserError
from meltr.files import write_json, write_text
from meltr.specs import RunSpec

PACKAGES = ("meltr-core", "torch", "torchvision", "timm", "transformers", "numpy", "safetensors", "pluggy", "pydantic")


class RunFolder:
    """Paths of a run.

    Args:
        path: The folder itself.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spec = path / "run.yaml"
        self.environment = path / "environment.json"
        self.data = path / "data.json"
        self.metrics = path / "metrics.jsonl"
        self.results = path / "results.json"
        self.checkpoints = path / "checkpoints"
        self.predictions = path / "predictions"

    def create(self, spec: RunSpec) -> None:
        """Make the folder with ``run.yaml`` and ``environment.json``.

        Raises:
            UserError: If it cannot be written.
        """
        from meltr.settings import dump_yaml

        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_text(self.spec, dump_yaml(spec))
            write_json(self.environment, environment())
        except OSError as error:
            raise UserError(
                f"Cannot write the run folder {self.path}: {error.strerror or error}.",
                "Choose another place with --output-dir.",
            ) from error


def environment() -> dict[str, Any]:
    """Return what a reader needs to repeat the run: versions, platform, command."""
    import torch

    return {
        "versions": versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "command": ["meltr", *sys.argv[1:]],
    }


def versions() -> dict[str, str]:
    """Return the versions of the packages that matter and are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
