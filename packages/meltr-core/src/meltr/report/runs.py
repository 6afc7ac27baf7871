"""Reads run folders, finished or killed, of one seed or of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from meltr.errors import UserError
from meltr.files import decode
from meltr.folders.run_folder import RunFolder, not_a_run_folder, seed_folders
from meltr.limits import SETTINGS_BYTES, UnreadableError, file_bytes, file_text, from_json, from_yaml

Line = Mapping[str, Any]


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
        return f"{path.parent.name}/{path.name}" if RunFolder(path).seed is not None else path.name

    @cached_property
    def seed(self) -> int | None:
        """The seed, from the results, the description or the folder's name."""
        value = self.fact("seed")
        return RunFolder(self.path.resolve()).seed if value is None else int(value)

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

    def ordered(self, found: Sequence[str]) -> list[str]:
        """Return names of losses in the run's order, so that each task has the same colour in every figure."""
        order = [name for name in self.losses if name in found]
        return order + [name for name in found if name not in order]


def load_run(path: Path) -> Run:
    """Read the run in the folder `path`.

    Raises:
        UserError: If it is not a run folder, holds several seeds, or a file in it is broken.
    """
    folder = RunFolder(path)
    several = seed_folders(path) and not (folder.was_started or folder.metrics.is_file())
    if several or not folder.holds_run:
        raise _refused(folder)
    results = folder.read_results()
    spec = _read_yaml(folder.spec) or (results or {}).get("spec") or {}
    lines = _read_lines(folder.metrics)
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
    folder, seeds = RunFolder(path), seed_folders(path)
    if not seeds or folder.metrics.is_file():
        return Group(path, (load_run(path),))
    started = [each for each in seeds if each.holds_run]
    if not started:
        names = " or ".join(mark.name for mark in folder.marks)
        raise UserError(
            f"{path} holds the folders of {len(seeds)} seeds, but none has {names}",
            "Nothing was run there yet; start it with `meltr run`.",
        )
    return Group(path, tuple(load_run(each.path) for each in started))


def require_metrics(group: Group) -> None:
    """Check that there is something to draw.

    Raises:
        UserError: If no run of `group` has logged anything yet.
    """
    if any(run.train or run.outer or run.evaluations for run in group.runs):
        return
    log = RunFolder(group.runs[0].path).log
    interval = (group.runs[0].spec.get("train") or {}).get("log_every")
    every = f"every {interval} steps (train.log_every)" if interval else "every train.log_every steps"
    raise UserError(
        f"{group.path} has nothing logged yet: metrics.jsonl is missing or empty",
        f"A run writes a line {every}; wait for the first, or see why it stopped in {log}",
    )


def _refused(folder: RunFolder) -> UserError:
    return not_a_run_folder(folder.path, ", ".join(mark.name for mark in folder.marks), none_of=True)


def _read_yaml(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        value = from_yaml(file_text(path, most=SETTINGS_BYTES), path)
    except UnreadableError as error:
        raise UserError(error.message, "It was changed or copied incompletely.") from None
    return value if isinstance(value, dict) else None


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Read metrics.jsonl; a last line that a kill cut off, or that is being written, is skipped."""
    if not path.is_file():
        return []
    texts = file_bytes(path).decode("utf-8", errors="replace").splitlines()
    lines = []
    for index, text in enumerate(texts):
        try:
            line = decode(from_json(text, f"{path}, line {index + 1}", finite=False))
        except UnreadableError as error:
            if index == len(texts) - 1:
                break
            message = f"{path}, line {index + 1}, is {error.problem}"
            raise UserError(message, "Remove the line, or the whole file.") from None
        if isinstance(line, dict):
            lines.append(line)
    return lines
