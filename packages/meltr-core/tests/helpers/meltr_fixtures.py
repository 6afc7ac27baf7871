"""Fixtures of the tests of all packages; the conftest.py at the top of the checkout loads them.

The process that hands tests out to others (pytest-xdist) loads them too, so nothing here is slow to import.
"""

from __future__ import annotations

import gc
import importlib.metadata
import os
import shutil
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest

from meltr.errors import UserError

Sample = Callable[[str], Path]
"""Makes the small synthetic sample of a data set and returns its folder."""

SIZES = {"train": 10, "validation": 4, "test": 6}
"""Clips of a small synthetic sample by split."""

if os.environ.get("CI"):
    from hypothesis import settings

    settings.register_profile("ci", derandomize=True)
    settings.load_profile("ci")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Collect no garbage while modules are imported, and none of what they made afterwards: it lives to the end.

    Otherwise a sixth of the time of a small part of the tests goes into looking through it.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_unconfigure() -> None:
    """Let the interpreter clear up as usual at its end; libraries complain of leaks otherwise."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def no_installed_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `meltr.plugins.discover` find core's own plugins and those in files alone."""
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [])


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
        from meltr.video import miniature

        folder = cache / "miniature" / f"{dataset}-0-v{miniature.VERSION}"
        if not folder.is_dir():
            shutil.copytree(_small_sample(dataset, common / dataset), folder)
        return folder

    return make


def _small_sample(dataset: str, folder: Path) -> Path:
    """Write a synthetic sample into `folder`, which the workers share, unless it is there."""
    from meltr.video import miniature

    module, _, name = miniature.DATASETS[dataset].partition(":")
    splits = getattr(import_module(module), name).splits
    try:
        return folder if folder.is_dir() else miniature.write(dataset, folder, sizes={s: SIZES[s] for s in splits})
    except (OSError, UserError):
        if folder.is_dir():  # Another worker was faster and wrote the same.
            return folder
        raise
