"""Weights & Biases: ``meltr run --tracker wandb``; without a network with ``WANDB_MODE=offline``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from meltr.observers.tracker import Tracker


class WandbTracker(Tracker):
    """Sends a run to Weights & Biases.

    Raises:
        UserError: If wandb is not installed.
    """

    PACKAGE = "wandb"
    PROJECT_VARIABLE = "WANDB_PROJECT"

    def begin(self, project: str, name: str, settings: dict[str, Any], *, identity: str | None, folder: Path) -> str:
        """Start a run, or continue the one with this id; return its id."""
        how = {} if identity is None else {"id": identity, "resume": "allow"}
        self._run = self.library.init(project=project, name=name, config=settings, dir=str(folder), **how)
        return str(self._run.id)

    def send(self, values: dict[str, float], step: int) -> None:
        """Send numbers; those of a step that was sent before an interruption are ignored by the service."""
        self._run.log(values, step=step)

    def end(self) -> None:
        """Finish the run."""
        self._run.finish()
