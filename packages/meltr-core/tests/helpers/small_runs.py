"""Small runs of the video backbones, which the tests of their packages build models and data from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from meltr.context import RunContext
from meltr.engine.built_run import open_run
from meltr.parallel.ranks import Ranks
from meltr.plugins import discover
from meltr.settings import resolve
from meltr.specs import RunSpec

MakeSpec = Callable[..., RunSpec]
MakeContext = Callable[..., RunContext]


def spec_maker(
    sample: Callable[[str], Path],
    backbone: str,
    settings: Mapping[str, Any],
    *,
    task: str = "qa",
    dataset: str = "msvd",
) -> MakeSpec:
    """Return a maker of runs: task, data set, `data_root` or a synthetic sample, settings with ``__`` for the dot.

    Args:
        sample: The fixture of that name.
        backbone: Name of the backbone.
        settings: Settings of every run, by dotted names.
        task: The task, if the maker is not told another.
        dataset: The data set, if the maker is not told another.
    """

    def make(task: str = task, dataset: str = dataset, *, data_root: Path | None = None, **others: Any) -> RunSpec:
        flags: dict[str, Any] = {"device": "cpu", "combiner": "sum"}
        if data_root is None:
            sample(dataset)
            flags["sample"] = True
        else:
            flags["data_root"] = data_root
        flags |= {**settings, **{key.replace("__", "."): value for key, value in others.items()}}
        return resolve(discover(), backbone=backbone, task=task, dataset=dataset, preset="none", flags=flags)

    return make


def context_maker(make_spec: MakeSpec) -> MakeContext:
    """Return a maker of what core tells the adapter of a run that `make_spec` describes."""

    def make(*choice: str, run_dir: Path | None = None, **settings: Any) -> RunContext:
        spec = make_spec(*choice, **settings)
        return open_run(spec, discover(), run_dir=run_dir, ranks=Ranks.single(torch.device("cpu")))[1]

    return make
