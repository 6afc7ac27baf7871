"""Items of a data set, whose failures are values: what could not be read is named, without a traceback.

A failure travels from a worker process as a value, so that its message arrives as it was written.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset, default_collate

from meltr.errors import MeltrError, PluginError, UserError
from meltr.seeding import seed_again

MOST_SUBSTITUTES = 100
"""Items that are tried in place of a broken one."""

HINT = "Mend or replace it, and go on with: meltr run --resume RUN"


class UnreadableItemError(UserError):
    """The file of an item is missing or broken."""

    index: int = -1
    """Index of the item."""


@dataclass(frozen=True)
class Failure:
    """An item that could not be read.

    Args:
        index: Its index.
        kind: Name of the exception's class.
        message: Its message.
        hint: Its hint, if it has one.
        input_is_wrong: Whether it is a `UserError`: a file that is missing or broken.
        trace: The traceback as text, for ``--debug``.
    """

    index: int
    kind: str
    message: str
    hint: str | None
    input_is_wrong: bool
    trace: str

    @classmethod
    def of(cls, index: int, error: Exception) -> Failure:
        """Return the failure that an exception amounts to."""
        known = isinstance(error, MeltrError)
        message = error.message if isinstance(error, MeltrError) else f"{type(error).__name__}: {error}"
        hint = error.hint if isinstance(error, MeltrError) else None
        wrong = isinstance(error, UserError)
        return cls(index, type(error).__name__, message, hint, wrong, "" if known else traceback.format_exc())


@dataclass(frozen=True)
class Read:
    """A collated batch, or the first failure in it, and the failures that other items stood in for."""

    batch: Any
    failure: Failure | None
    skipped: tuple[Failure, ...]


class Items(Dataset[Any]):
    """A data set whose failures are values.

    Args:
        dataset: The data set.
        seed_of: (epoch, index) -> seed of the random numbers that the item draws; None: they are left alone.
        skip: Let the next item that can be read stand in for one whose file is missing or broken.
    """

    def __init__(
        self, dataset: Dataset[Any], seed_of: Callable[[int, int], int] | None = None, *, skip: bool = False
    ) -> None:
        self._dataset, self._seed_of, self._skip = dataset, seed_of, skip
        self.lost: set[int] = set()
        """Items whose worker died twice."""
        self.notes: torch.Tensor | None = None
        """Process and item of each worker, (workers, 2), in shared memory."""

    @property
    def skips(self) -> bool:
        """Whether other items stand in for those that cannot be read."""
        return self._skip

    def __len__(self) -> int:
        """Items."""
        return len(self._dataset)  # type: ignore[arg-type]

    def __getitem__(self, key: tuple[int, int]) -> tuple[Any, tuple[Failure, ...]]:
        """Return an item, or its `Failure`, and the failures that it stands in for.

        Args:
            key: Epoch and index.
        """
        epoch, index = key
        skipped: list[Failure] = []
        for number in range(index, index + MOST_SUBSTITUTES):
            found = self._one(epoch, number % len(self))
            if not (isinstance(found, Failure) and found.input_is_wrong and self._skip):
                return found, tuple(skipped)
            skipped.append(found)
        return skipped[0], ()

    def _one(self, epoch: int, index: int) -> Any:
        if self.notes is not None:
            info = torch.utils.data.get_worker_info()
            if info is not None:
                self.notes[info.id] = torch.tensor([os.getpid(), index])
        if index in self.lost:
            return Failure(index, "WorkerDiedError", "the process that read it died twice", None, True, "")
        if self._seed_of is not None:
            seed_again(self._seed_of(epoch, index))
        try:
            return self._dataset[index]
        except Exception as error:
            return Failure.of(index, error)


class Collate:
    """Collates items of `Items`; it can be pickled if `collate` can.

    Args:
        collate: Turns a list of items into a batch; None: torch's.
    """

    def __init__(self, collate: Callable[[list[Any]], Any] | None) -> None:
        self.function = collate
        self._collate = collate or default_collate

    def __call__(self, pairs: Sequence[tuple[Any, tuple[Failure, ...]]]) -> Read:
        """Return the batch, or the first failure in it."""
        failed = next((item for item, _ in pairs if isinstance(item, Failure)), None)
        skipped = tuple(each for _, several in pairs for each in several)
        return Read(None if failed else self._collate([item for item, _ in pairs]), failed, skipped)


def naming(dataset: object, noun: str) -> Callable[[int], str]:
    """Return a function from an index to a name for messages: that of the data set's own `item_name`, if it has one."""
    own = getattr(dataset, "item_name", None)
    return (lambda index: f"{noun} {index} ({own(index)})") if callable(own) else (lambda index: f"{noun} {index}")


def error_of(failure: Failure, name_of: Callable[[int], str]) -> MeltrError:
    """Return the error for an item that could not be read."""
    hint = HINT if failure.hint is None else f"{failure.hint} Then go on with: meltr run --resume RUN"
    what = f"Cannot read {name_of(failure.index)}: {failure.message}"
    if failure.input_is_wrong:
        wrong = UnreadableItemError(what, hint)
        wrong.index = failure.index
        return wrong
    error = PluginError(what, hint)
    if failure.trace:
        error.__cause__ = RuntimeError(f"in the process that read it:\n{failure.trace}")
    return error
