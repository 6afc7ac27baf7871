"""The folder of a run: the names of its files, and the test for a run folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from meltr.environment import environment
from meltr.errors import UserError, closest
from meltr.files import read_object, write_json, write_text
from meltr.folders.checkpoint_folder import checkpoints_in
from meltr.settings import dump_yaml, load_spec
from meltr.specs import RunSpec

_SEED = "seed-"


class RunFolder:
    """Paths of a run with one seed, and their content.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spec = path / "run.yaml"
        self.environment = path / "environment.json"
        self.data = path / "data.json"
        self.metrics = path / "metrics.jsonl"
        self.log = path / "log.txt"
        self.results = path / "results.json"
        self.checkpoints = path / "checkpoints"
        self.predictions = path / "predictions"
        self.plots = path / "plots"
        self.tensorboard = path / "tensorboard"
        self.trackers = path / "trackers.json"

    def predictions_of(self, split: str) -> Path:
        """Return the file with the rows that an adapter predicted for a split."""
        return self.predictions / f"{split}.jsonl"

    def evaluation_of(self, split: str) -> Path:
        """Return the file that ``meltr evaluate`` writes for a split."""
        return self.path / f"evaluation-{split}.json"

    @property
    def seed(self) -> int | None:
        """The seed of a folder named ``seed-N``; None for another name."""
        found = re.fullmatch(rf"{_SEED}(\d+)", self.path.name)
        return None if found is None else int(found[1])

    @property
    def was_started(self) -> bool:
        """Whether the folder describes a run; only then can it be resumed, evaluated or used for prediction."""
        return self.spec.is_file()

    @property
    def marks(self) -> tuple[Path, ...]:
        """The files that mark a run folder, finished or not; one of them is enough."""
        return (self.spec, self.metrics, self.results)

    @property
    def holds_run(self) -> bool:
        """Whether the folder contains any part of a run."""
        return any(mark.is_file() for mark in self.marks)

    @property
    def keeps_work(self) -> bool:
        """Whether the folder, or that of one of several seeds, has results or a checkpoint, which are worth keeping."""
        folders = (self, *seed_folders(self.path))
        return self.results.exists() or any(checkpoints_in(each.checkpoints) for each in folders)

    @property
    def wrote_checkpoint(self) -> bool:
        """Whether the log tells of a checkpoint, which need not be there any more."""
        try:
            with self.log.open(encoding="utf-8", errors="replace") as lines:
                return any("  checkpoint  " in line for line in lines)
        except OSError:
            return False

    def create(self, spec: RunSpec) -> None:
        """Create the folder with ``run.yaml`` and ``environment.json``.

        Raises:
            UserError: If it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_text(self.spec, dump_yaml(spec))
            write_json(self.environment, environment())
        except OSError as error:
            raise UserError(
                f"Cannot write the run folder {self.path}: {error.strerror or error}.",
                "Choose another folder with --output-dir.",
            ) from error

    def read_spec(self) -> RunSpec:
        """Return the description of the run.

        Raises:
            UserError: If this is not a run folder, or ``run.yaml`` cannot be read.
        """
        if not self.was_started:
            raise not_a_run_folder(self.path, self.spec.name)
        return load_spec(self.spec)

    def read_results(self) -> dict[str, Any] | None:
        """Return the results of a finished run; None if it did not finish.

        Raises:
            UserError: If ``results.json`` is broken.
        """
        content = read_object(self.results)
        if content is None or "runs" in content:
            return None
        wrong = _odd_result(content)
        if wrong is not None:
            raise UserError(
                f"{self.results} does not hold the results of a run: {wrong}.",
                "It was changed, or another program wrote it.",
            )
        return content


_SHAPES: dict[str, tuple[type, ...]] = {
    "metric": (str, type(None)),
    "seed": (int, type(None)),
    "losses": (list, type(None)),
    "test": (dict, type(None)),
    "validation": (dict, type(None)),
}


def _odd_result(content: dict[str, Any]) -> str | None:
    """Return what in the content of ``results.json`` has a type that a run does not write; None if nothing has."""
    for name, kinds in _SHAPES.items():
        value = content.get(name)
        if not isinstance(value, kinds) or isinstance(value, bool):
            return f"{name!r} is {value!r:.60}"
        metrics = (value.get("metrics") or {}) if isinstance(value, dict) else {}
        if not isinstance(metrics, dict) or not all(isinstance(each, (int, float)) for each in metrics.values()):
            return f"the metrics of {name!r} are {metrics!r:.60}"
    return None


def seed_folder(parent: Path, seed: int) -> RunFolder:
    """Return the folder of one of several seeds, whether or not it exists."""
    return RunFolder(parent / f"{_SEED}{seed}")


def seed_folders(parent: Path) -> list[RunFolder]:
    """Return the folders of seeds in `parent`, ordered by seed, even if they are empty."""
    found = [RunFolder(item) for item in parent.glob(f"{_SEED}*") if item.is_dir()]
    return sorted((each for each in found if each.seed is not None), key=lambda each: each.seed or 0)


def not_a_run_folder(path: Path, missing: str, *, none_of: bool = False) -> UserError:
    """Return the error for a path that should be a run folder; it lists the runs nearby.

    Args:
        path: The given path.
        missing: The missing file that marks a run folder; several are separated by commas.
        none_of: True if any one of these files would be enough.
    """
    what = f"{path} is not a run folder"
    if not path.exists():
        return UserError(f"{what}: it does not exist", _runs_nearby(path))
    if not path.is_dir():
        return UserError(f"{what}: it is a file", _runs_nearby(path))
    seeds = seed_folders(path)
    if seeds:
        names = ", ".join(each.path.name for each in seeds)
        return UserError(f"{path} holds several seeds: {names}", f"Name one of them, e.g. {seeds[0].path}")
    return UserError(f"{what}: it has {'none of' if none_of else 'no'} {missing}", _runs_nearby(path))


_SHOWN = 8


def _runs_nearby(path: Path) -> str:
    """Return a hint with the runs in `path`, else those in its parent folder, else what a run folder is."""
    for place in (path, path.parent):
        found = _runs_in(place)
        if not found:
            continue
        close = closest(path.name, found) if place == path.parent else None
        guess = f"Did you mean {close!r}? " if close else ""
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        return f"{guess}Runs in {place}: {', '.join(found[:_SHOWN])}{more}"
    return "Give the folder that `meltr run` wrote, e.g. runs/<name>"


def _runs_in(place: Path) -> list[str]:
    """Return the names of the folders in `place` that hold a run or several seeds."""
    if not place.is_dir():
        return []
    folders = [item for item in sorted(place.iterdir()) if item.is_dir()]
    return [item.name for item in folders if RunFolder(item).holds_run or seed_folders(item)]
