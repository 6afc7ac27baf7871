"""The base class of trackers: observers that send the numbers of a run to a service or to its local store."""

from __future__ import annotations

import abc
import importlib
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from meltr.errors import UserError, did_you_mean
from meltr.files import read_object, write_json
from meltr.folders.run_folder import RunFolder
from meltr.hookspecs import hookimpl
from meltr.observers import scalars

if TYPE_CHECKING:
    from meltr.context import Evaluation, RunContext, StepRecord

TRACKERS = {
    "tensorboard": "meltr.observers.tensorboard:TensorboardObserver",
    "wandb": "meltr.observers.wandb:WandbTracker",
    "mlflow": "meltr.observers.mlflow:MlflowTracker",
    "trackio": "meltr.observers.trackio:TrackioTracker",
}
"""The names of ``meltr run --tracker``, and the class of each."""


class Tracker(abc.ABC):
    """Sends losses, task weights, gradient alignments, speed and metrics to one run of a tracker.

    The settings of the run are its configuration. The project is ``meltr``, unless the environment variable
    `PROJECT_VARIABLE` names another. The identity of the tracker's run is kept in ``trackers.json`` in the run's
    folder, so that a resumed run continues it.

    Raises:
        UserError: If the package is not installed.
    """

    PACKAGE: ClassVar[str]
    PROJECT_VARIABLE: ClassVar[str]

    def __init__(self) -> None:
        if importlib.util.find_spec(self.PACKAGE) is None:
            raise UserError(
                f"--tracker {self.PACKAGE} was requested, but the package {self.PACKAGE!r} is not installed",
                f"Install it with: pip install 'meltr-core[{self.PACKAGE}]'",
            )
        self._open = False

    @abc.abstractmethod
    def begin(self, project: str, name: str, settings: dict[str, Any], *, identity: str | None, folder: Path) -> str:
        """Start a run of the tracker, or continue one; return its identity.

        Args:
            project: Name of the project.
            name: Name for a new run.
            settings: The settings of the run, nested plain values.
            identity: What an earlier call returned, for a resumed run; None: start a new one.
            folder: The folder of the run.
        """

    @abc.abstractmethod
    def send(self, values: dict[str, float], step: int) -> None:
        """Send numbers of a step."""

    @abc.abstractmethod
    def end(self) -> None:
        """End the run of the tracker."""

    @hookimpl
    def on_step_end(self, context: RunContext, record: StepRecord) -> None:
        """Send a logged step."""
        self._send(context, scalars.of_step(record), record.step)

    @hookimpl
    def on_evaluation(self, context: RunContext, split: str, step: int, evaluation: Evaluation) -> None:
        """Send an evaluation."""
        self._send(context, scalars.of_evaluation(split, evaluation), step)

    @hookimpl
    def on_run_end(self, context: RunContext, results: Mapping[str, Any]) -> None:
        """End the run of the tracker."""
        self.close()

    def close(self) -> None:
        """End the run of the tracker; calling it twice is harmless."""
        if self._open:
            self._open = False
            self.end()

    @property
    def library(self) -> Any:
        """The module of the package."""
        return importlib.import_module(self.PACKAGE)

    def _send(self, context: RunContext, values: dict[str, float], step: int) -> None:
        if context.run_dir is None:
            return
        if not self._open:
            self._begin(context, context.run_dir)
        self.send(values, step)

    def _begin(self, context: RunContext, path: Path) -> None:
        file = RunFolder(path).trackers
        known = read_object(file) or {}
        folder = RunFolder(path)
        name = path.name if folder.seed is None else f"{path.parent.name}-{path.name}"
        identity = self.begin(
            os.environ.get(self.PROJECT_VARIABLE) or "meltr",
            name,
            context.spec.model_dump(mode="json"),
            identity=known.get(self.PACKAGE),
            folder=path,
        )
        self._open = True
        write_json(file, {**known, self.PACKAGE: identity})


def tracker(name: str) -> Any:
    """Return a new observer for a name of ``--tracker``.

    Raises:
        UserError: If there is none of that name, or its package is not installed.
    """
    check_names([name])
    module, _, kind = TRACKERS[name].partition(":")
    return getattr(importlib.import_module(module), kind)()


def check_names(names: list[str]) -> None:
    """Check names of ``--tracker``.

    Raises:
        UserError: If there is no tracker of a name.
    """
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"there is no tracker {name!r}", did_you_mean(name, TRACKERS))


def flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return nested settings with dotted names: ``{"train": {"lr": 1}}`` becomes ``{"train.lr": 1}``."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {f"{before}{name}": value}
    return found
