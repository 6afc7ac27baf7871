"""Several seeds of one run: a parent folder with one run folder per seed, and their common results."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from meltr.errors import UserError
from meltr.files import read_object, write_json
from meltr.folders.run_folder import RunFolder, not_a_run_folder, seed_folder
from meltr.specs import RunSpec


class SeedsFolder:
    """Paths of several seeds.

    Args:
        path: The parent of the run folders.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.description = path / "seeds.json"
        self.results = path / "results.json"

    def write(self, seeds: Sequence[int], spec: RunSpec) -> None:
        """Write the list of seeds and the description of the first run."""
        write_json(self.description, {"seeds": list(seeds), "spec": spec.model_dump(mode="json")})

    def read(self) -> dict[str, Any] | None:
        """Return ``seeds`` and ``spec`` as given to `write`; None if this is not a folder of several seeds.

        Raises:
            UserError: If the file is broken.
        """
        return read_object(self.description)

    @property
    def seeds(self) -> list[int] | None:
        """The seeds; None if this is not a folder of several seeds."""
        content = self.read()
        return None if content is None else [int(seed) for seed in content["seeds"]]


def started_runs(path: Path) -> list[RunFolder]:
    """Return the run in `path`, or the started runs of several seeds.

    Raises:
        UserError: If `path` holds no started run.
    """
    seeds = SeedsFolder(path).seeds
    if seeds is None:
        folder = RunFolder(path)
        if not folder.was_started:
            raise not_a_run_folder(path, folder.spec.name)
        return [folder]
    started = [folder for folder in (seed_folder(path, seed) for seed in seeds) if folder.was_started]
    if not started:
        raise UserError(f"no seed of {path} was started", f"Start them with: meltr run --resume {path}")
    return started


def aggregate(seeds: Sequence[int], runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return mean and standard deviation over seeds, as in the parent's ``results.json``.

    Args:
        seeds: The seeds.
        runs: The results of each, in the same order.
    """
    return {
        "seeds": list(seeds),
        "metric": runs[0]["metric"],
        "higher_is_better": runs[0]["higher_is_better"],
        "test": spread([run.get("test") for run in runs]),
        "validation": spread([run.get("validation") for run in runs]),
        "runs": list(runs),
    }


def spread(splits: Sequence[Mapping[str, Any] | None]) -> dict[str, dict[str, float]]:
    """Return mean, sample standard deviation and number of values of each metric; the deviation of one value is 0."""
    values: dict[str, list[float]] = {}
    for split in splits:
        for name, value in (split or {}).get("metrics", {}).items():
            if isinstance(value, (int, float)):
                values.setdefault(name, []).append(float(value))
    return {
        name: {"mean": statistics.fmean(each), "std": _deviation(each), "n": len(each)} for name, each in values.items()
    }


def _deviation(values: Sequence[float]) -> float:
    if not all(map(math.isfinite, values)):
        return math.nan
    return statistics.stdev(values) if len(values) > 1 else 0.0
