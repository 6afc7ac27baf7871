"""Fixtures of the tests of all packages; the conftest.py at the top of the checkout loads them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from meltr.errors import UserError
from meltr.video import miniature

Sample = Callable[[str], Path]
"""Makes the small synthetic sample of a data set and returns its folder."""

SIZES = {"train": 10, "validation": 4, "test": 6}
"""Clips of a small synthetic sample by split."""

settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that tests set ``MELTR_CACHE`` to; each worker of pytest-xdist has its own."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def sample(cache: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Sample:
    """Return a maker of synthetic samples of `SIZES` clips, in the cache that ``--sample`` uses."""
    monkeypatch.setenv("MELTR_CACHE", str(cache))
    base = tmp_path_factory.getbasetemp()
    common = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "samples"

    def make(dataset: str) -> Path:
        folder = cache / "miniature" / f"{dataset}-0-v{miniature.VERSION}"
        if not folder.is_dir():
            shutil.copytree(_small_sample(dataset, common / dataset), folder)
        return folder

    return make


def _small_sample(dataset: str, folder: Path) -> Path:
    """Write a synthetic sample into `folder`, which the workers share, unless it is there."""
    module, _, name = miniature.DATASETS[dataset].partition(":")
    splits = getattr(import_module(module), name).splits
    try:
        return folder if folder.is_dir() else miniature.write(dataset, folder, sizes={s: SIZES[s] for s in splits})
    except (OSError, UserError):
        if folder.is_dir():  # Another worker was faster and wrote the same.
            return folder
        raise
