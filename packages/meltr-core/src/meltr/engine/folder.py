"""The folder of a run: names of its files, and writing them whole."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from meltr.errors import UserError
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
            write_json(self.environment, environment(spec))
        except OSError as error:
            raise UserError(
                f"Cannot write the run folder {self.path}: {error.strerror or error}.",
                "Choose another place with --output-dir.",
            ) from error


def environment(spec: RunSpec) -> dict[str, Any]:
    """Return what a reader needs to repeat the run: versions, platform, command."""
    import torch

    return {
        "versions": versions(spec),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "command": ["meltr", *sys.argv[1:]],
    }


def versions(spec: RunSpec) -> dict[str, str]:
    """Return the versions of the packages that matter, and of the one that brings the backbone where it is known."""
    found = {}
    for name in (*PACKAGES, f"meltr-{spec.backbone}"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def write_text(path: Path, text: str) -> None:
    """Write a file beside and rename it: readers see the old one or the new one."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON whole."""
    write_text(path, json.dumps(content, indent=2, default=str) + "\n")


def write_lines(path: Path, rows: tuple[Mapping[str, Any], ...]) -> None:
    """Write JSON lines whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(row, default=str) + "\n" for row in rows))
