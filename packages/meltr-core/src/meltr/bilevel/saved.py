"""What a loop saves to be resumed bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


class Progress:
    """A loop's counters, names and estimator: its state without phi and the outer optimiser.

    For programs that save the combiner and the optimiser themselves.

    Args:
        save: Returns the state.
        load: Continues from a state.
    """

    def __init__(self, save: Callable[[], dict[str, Any]], load: Callable[[Mapping[str, Any]], None]) -> None:
        self._save, self._load = save, load

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        return self._save()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state that `state_dict` returned."""
        self._load(state)
