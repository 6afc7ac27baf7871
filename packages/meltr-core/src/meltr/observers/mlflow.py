"""MLflow: ``meltr run --tracker mlflow``; the server or file is that of ``MLFLOW_TRACKING_URI``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from meltr.observers.tracker import Tracker, flat

LONGEST = 500
"""Characters of a parameter that every version of MLflow stores."""


class MlflowTracker(Tracker):
    """Sends a run to MLflow: metrics, and the settings as parameters.

    Raises:
        UserError: If mlflow is not installed.
    """

    PACKAGE = "mlflow"
    PROJECT_VARIABLE = "MLFLOW_EXPERIMENT_NAME"

    def begin(self, project: str, name: str, settings: dict[str, Any], *, identity: str | None, folder: Path) -> str:
        """Start a run of the experiment `project`, or continue the one with this id; return its id."""
        self.library.set_experiment(project)
        if identity is not None:
            return str(self.library.start_run(run_id=identity).info.run_id)
        run = self.library.start_run(run_name=name)
        self.library.log_params({key: str(value)[:LONGEST] for key, value in flat(settings).items()})
        return str(run.info.run_id)

    def send(self, values: dict[str, float], step: int) -> None:
        """Send numbers."""
        self.library.log_metrics(values, step=step)

    def end(self) -> None:
        """End the run."""
        self.library.end_run()
