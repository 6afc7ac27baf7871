from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from allinone_clips import SMALL
from meltr.context import RunContext
from meltr.plugins import discover
from meltr.specs import RunSpec
from meltr.video.text.wordpiece import write_vocabulary
from meltr_allinone.options import AllInOneOptions
from meltr_fixtures import Sample

Make = Callable[..., RunContext]


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
        workers: int | None = None,
        **options: Any,
    ) -> RunContext:
        if data_root is None:
            sample(dataset)
        given = settings or {}
        spec = RunSpec(
            backbone="allinone",
            task=task,
            dataset=dataset,
            losses=losses,
            data_root=data_root,
            sample=data_root is None,
            **{"train": {"batch_size": 4}, **given, "data": {"workers": workers, **given.get("data", {})}},
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
