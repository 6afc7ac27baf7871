"""What a model of the tests writes down about its evaluations, and keeps."""

from __future__ import annotations

from typing import Any


class Tally:
    """A count and a list in an object of another package than the model's.

    Numbers and lists of the model itself, and objects of its own package, would be state, which comes back after every
    further evaluation.
    """

    def __init__(self) -> None:
        self.count = 0
        self.seen: list[Any] = []
