from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from allinone_clips import SIZES, SMALL
from meltr.context import RunContext
from meltr.plugins import discover
from meltr.specs import RunSpec
from meltr.video import miniature
from meltr.video.text.wordpiece import write_vocabulary
from meltr_allinone.options import AllInOneOptions

Make = Callable[..., RunContext]
Sample = Callable[[str], Path]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def sample(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Sample:
    """Return a maker of miniatures of a few clips, in a cache that ``--sample`` uses."""
    monkeypatch.setenv("MELTR_CACHE", str(cache))

    def make(dataset: str) -> Path:
        folder = cache / "miniature" / f"{dataset}-0-v{miniature.VERSION}"
        if not folder.exists():
            splits = ("train", "test") if dataset.startswith("msrvtt-") else SIZES
            miniature.write(dataset, folder, sizes={split: SIZES[split] for split in splits})
        return folder

    return make


@pytest.fixture
def make_context(sample: Sample) -> Make:
    """Return a maker of what core tells the adapter of a small run; without `data_root` on a miniature."""

    def make(
        task: str = "retrieval",
        dataset: str = "msrvtt-7k",
        *,
        data_root: Path | None = None,
        run_dir: Path | None = None,
        losses: tuple[str, ...] = ("vtm", "mlm"),
        settings: dict[str, dict[str, Any]] | None = None,
        **options: Any,
    ) -> RunContext:
        if data_root is None:
            sample(dataset)
        spec = RunSpec(
            backbone="allinone",
            task=task,
            dataset=dataset,
            losses=losses,
            data_root=data_root,
            sample=data_root is None,
            **{"train": {"batch_size": 4}} | (settings or {}),
        )
        return RunContext(
            spec=spec,
            task=discover().task(task),
            options=AllInOneOptions(**SMALL | options),
            device=torch.device("cpu"),
            losses=losses,
            run_dir=run_dir,
        )

    return make


@pytest.fixture
def clips(sample: Sample) -> list[Path]:
    return sorted((sample("msrvtt-7k") / "videos" / "all").iterdir())


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    write_vocabulary(tmp_path / "vocabulary.txt", ["is it there? a red ball"])
    return tmp_path / "vocabulary.txt"
