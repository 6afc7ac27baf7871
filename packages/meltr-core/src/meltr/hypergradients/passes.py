"""Upper bounds of what an outer step costs, before one has been counted."""

from __future__ import annotations

from typing import NamedTuple


class Passes(NamedTuple):
    """Numbers of passes through the losses.

    Args:
        forward: Forward passes; one with dual numbers counts as three.
        backward: Backward passes.
    """

    forward: int
    backward: int
