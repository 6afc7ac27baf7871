"""The environment of a run, for repeating it: versions, platform, device, command."""

from __future__ import annotations

import platform
import sys
from importlib import metadata
from typing import Any

PACKAGES = ("meltr-core", "torch", "torchvision", "timm", "transformers", "numpy", "safetensors", "pluggy", "pydantic")


def environment() -> dict[str, Any]:
    """Return the content of ``environment.json``."""
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
    """Return the versions of the installed packages among `PACKAGES`."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
