"""Reads run folders, finished or killed, of one seed or of several."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from meltr.errors import UserError
from meltr.files import decode

Line = Mapping[str, Any]

_MARKS = ("run.yaml", "metrics.jsonl", "results.json")


@dataclass(frozen=True)
class Run:
    """One run, of one seed.

    Args:
        path: Its folder.
        results: The content of results.json; None if the run is still going or was killed.
        spec: The content of run.yaml, or of ``spec`` in results.json; empty if there is neither.
        train: The training lines of metrics.jsonl.
        outer: The lines of outer steps.
        evaluations: The lines of evaluations.
    """

    path: Path
    results: Mapping[str, Any] | None = None
    spec: Mapping[str, Any] = field(default_factory=dict)
    train: tuple[Line, ...] = ()
    outer: tuple[Line, ...] = ()
    evaluations: tuple[Line, ...] = ()

    @property
    def name(self) -> str:
        """Name of the folder; for one seed of several, with its parent's."""
        path = self.path.resolve()
        return f"{path.parent.name}/{path.name}" if _seed_of(path) is not None else path.name

    @cached_property
    def seed(self) -> int | None:
        """The seed, from the results, the description or the folder's name."""
        value = self.fact("seed")
        return _seed_of(self.path.resolve()) if value is None else int(value)

    @property
    def losses(self) -> tuple[str, ...]:
        """Names of the losses, primary first."""
        names = self.fact("losses")
        if names is None and self.train:
            names = self.train[0].get("losses", {})
        return tuple(names or ())

    @property
    def metric(self) -> str | None:
        """Name of the primary metric; from the evaluations as long as there are no results."""
        if self.results is not None and self.results.get("metric"):
            return str(self.results["metric"])
        for line in self.evaluations:
            return next(iter(line["metrics"]), None)
        return None

    def fact(self, name: str) -> Any:
        """Return `name` from the results, else from the description, else None."""
        for source in (self.results, self.spec):
            if source is not None and source.get(name) is not None:
                return source[name]
        return None


@dataclass(frozen=True)
class Group:
    """Runs of one configuration that differ in the seed only; often just one.

    Args:
        path: Folder of the run, or the parent of the seeds' folders.
        runs: The runs, by seed.
    """

    path: Path
    runs: tuple[Run, ...]

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.resolve().name

    @property
    def losses(self) -> tuple[str, ...]:
        """Names of the losses, primary first."""
        return next((run.losses for run in self.runs if run.losses), ())


def load_run(path: Path) -> Run:
    """Read the run in the folder `path`.

    Raises:
        UserError: If it is no run folder, holds several seeds, or a file in it is broken.
    """
    _require_folder(path)
    if not any((path / mark).is_file() for mark in _MARKS[:2]) and _seed_folders(path):
        seeds = ", ".join(folder.name for folder in _seed_folders(path))
        raise UserError(f"{path} holds several seeds: {seeds}", f"Name one of them, e.g. {_seed_folders(path)[0]}")
    if not any((path / mark).is_file() for mark in _MARKS):
        raise UserError(f"{path} is not a run folder: it has none of {', '.join(_MARKS)}", _nearby(path))
    results = _read_json(path / "results.json")
    spec = _read_yaml(path / "run.yaml") or (results or {}).get("spec") or {}
    lines = _read_lines(path / "metrics.jsonl")
    by_kind = {
        kind: tuple(line for line in lines if line.get("kind") == kind) for kind in ("train", "outer", "evaluation")
    }
    return Run(
        path=path,
        results=results,
        spec=spec,
        train=by_kind["train"],
        outer=by_kind["outer"],
        evaluations=by_kind["evaluation"],
    )


def load_group(path: Path) -> Group:
    """Read the run in `path`, or all seeds below it.

    Raises:
        UserError: If it is neither a run folder nor the parent of seeds.
    """
    _require_folder(path)
    seeds = _seed_folders(path)
    if not seeds or (path / "metrics.jsonl").is_file():
        return Group(path, (load_run(path),))
    started = [folder for folder in seeds if any((folder / mark).is_file() for mark in _MARKS)]
    if not started:
        raise UserError(
            f"{path} holds the folders of {len(seeds)} seeds, but none has {' or '.join(_MARKS)}",
            "Nothing was run there yet; start it with `meltr run`.",
        )
    return Group(path, tuple(load_run(folder) for folder in started))


def require_metrics(group: Group) -> None:
    """Check that there is something to draw.

    Raises:
        UserError: If no run of `group` has logged anything yet.
    """
    if any(run.train or run.outer or run.evaluations for run in group.runs):
        return
    interval = (group.runs[0].spec.get("train") or {}).get("log_every")
    every = f"every {interval} steps (train.log_every)" if interval else "every train.log_every steps"
    raise UserError(
        f"{group.path} has nothing logged yet: metrics.jsonl is missing or empty",
        f"A run writes a line {every}; wait for the first, or see why it stopped in {group.runs[0].path / 'log.txt'}",
    )


def _seed_of(path: Path) -> int | None:
    """Return n of a folder named ``seed-n``."""
    prefix, _, number = path.name.partition("-")
    return int(number) if prefix == "seed" and number.isdecimal() else None


def _seed_folders(path: Path) -> list[Path]:
    folders = [item for item in path.glob("seed-*") if item.is_dir() and _seed_of(item) is not None]
    return sorted(folders, key=lambda item: _seed_of(item) or 0)


def _require_folder(path: Path) -> None:
    if path.is_dir():
        return
    what = "is a file, not a run folder" if path.exists() else "does not exist"
    raise UserError(f"{path} {what}", _nearby(path.parent))


def _nearby(path: Path) -> str:
    """Return a hint that lists the runs in `path`, or says how to make one."""
    found = []
    if path.is_dir():
        for item in sorted(path.iterdir()):
            if item.is_dir() and (any((item / mark).is_file() for mark in _MARKS) or _seed_folders(item)):
                found.append(str(item))
    if not found:
        return "Give the folder that `meltr run` wrote, e.g. runs/<name>"
    more = f" and {len(found) - 8} more" if len(found) > 8 else ""
    return f"Runs there: {', '.join(found[:8])}{more}"


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        value = decode(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}", "It was changed or copied incompletely.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, not an object", "It was not written by meltr.")
    return value


def _read_yaml(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    import yaml

    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}", "It was changed or copied incompletely.") from None
    return value if isinstance(value, dict) else None


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Read metrics.jsonl; a last line that a kill cut off, or that is being written, is left out."""
    if not path.is_file():
        return []
    texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    lines = []
    for index, text in enumerate(texts):
        try:
            line = decode(json.loads(text))
        except ValueError as error:
            if index == len(texts) - 1:
                break
            raise UserError(
                f"{path}, line {index + 1}, is not valid JSON: {error}", "Remove the line, or the whole file."
            ) from None
        if isinstance(line, dict):
            lines.append(line)
    return lines
