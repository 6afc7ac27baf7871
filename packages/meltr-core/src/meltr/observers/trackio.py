"""trackio: ``meltr run --tracker trackio``; its data base is local, and ``trackio show`` draws it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from meltr.observers.tracker import Tracker


class TrackioTracker(Tracker):
    """Sends a run to trackio.

    Raises:
        UserError: If trackio is not installed.
    """

    PACKAGE = "trackio"
    PROJECT_VARIABLE = "TRACKIO_PROJECT"

    def begin(self, project: str, name: str, settings: dict[str, Any], *, identity: str | None, folder: Path) -> str:
        """Start a run, or continue the one with this name; return its name."""
        resume = "never" if identity is None else "must"
        run = self.library.init(project=project, name=identity or name, config=settings, resume=resume)
        return str(run.name)

    def send(self, values: dict[str, float], step: int) -> None:
        """Send numbers."""
        self.library.log(values, step=step)

    def end(self) -> None:
        """Finish the run."""
        self.library.finish()
