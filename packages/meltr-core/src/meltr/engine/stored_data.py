"""Facts about a run's data, stored when it started: a trained run needs them instead of its data set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from meltr.context import Data
from meltr.errors import PluginError, UserError
from meltr.files import read_object
from meltr.folders.run_folder import RunFolder


class NoBatches:
    """Stands in for the training batches when there is no data set."""

    size = 0

    def __len__(self) -> int:
        return 0

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Raise an error.

        Raises:
            PluginError: Always.
        """
        raise PluginError(
            "The backbone requested training batches, but a trained run is used without its data set.",
            "build_model and predict must work with Data.meta and the run folder alone.",
        )


def stored_data(folder: RunFolder) -> Data:
    """Return a `Data` without batches and splits, with the facts stored when the run started.

    Raises:
        UserError: If the run folder does not hold them.
    """
    facts = read_object(folder.data)
    if facts is not None:
        if not isinstance(facts.get("meta"), dict) or not isinstance(facts.get("left_out"), dict):
            raise UserError(
                f"{folder.data} does not describe data: it lacks 'meta' or 'left_out'.",
                "It was changed or copied incompletely.",
            )
        return Data(train=NoBatches(), validation=None, meta=facts["meta"], left_out=facts["left_out"])
    results = read_object(folder.results)
    if results is not None and "data" in results:
        return Data(train=NoBatches(), validation=None, meta=results["data"])
    raise UserError(
        f"{folder.path} does not describe the data that the run was trained on: it has no {folder.data.name}.",
        f"An earlier version started the run, and it did not finish. Continue it: meltr run --resume {folder.path}",
    )
