"""The facts of a run's data as they were when it started: what a trained run needs instead of its data set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from meltr.context import Data
from meltr.errors import PluginError, UserError
from meltr.files import read_object
from meltr.folders.run_folder import RunFolder


class NoBatches:
    """Stands for the training batches where there is no data set."""

    size = 0

    def __len__(self) -> int:
        return 0

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Refuse.

        Raises:
            PluginError: Always.
        """
        raise PluginError(
            "The backbone asked for training batches, but a trained run is used without its data set.",
            "build_model and predict must do with Data.meta and the run folder.",
        )


def stored_data(folder: RunFolder) -> Data:
    """Return a `Data` without batches and splits, its facts as they were when the run started.

    Raises:
        UserError: If the run folder does not hold them.
    """
    facts = read_object(folder.data)
    if facts is not None:
        return Data(train=NoBatches(), validation=None, meta=facts["meta"], left_out=facts["left_out"])
    results = read_object(folder.results)
    if results is not None and "data" in results:
        return Data(train=NoBatches(), validation=None, meta=results["data"])
    raise UserError(
        f"{folder.path} does not say what data the run was trained on: it has no {folder.data.name}.",
        f"It was started by an earlier version and did not end. Continue it: meltr run --resume {folder.path}",
    )
