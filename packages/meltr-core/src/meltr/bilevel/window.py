"""Micro-batches that come one call at a time: the calls between two steps of the optimiser form a window."""

from __future__ import annotations

from meltr.errors import LoopError


class Window:
    """Counts the calls of `Bilevel.backward` that belong to one inner step.

    Attributes:
        taken: Calls of the open window; 0 between two windows.
    """

    def __init__(self) -> None:
        self.taken, self._size = 0, 1

    @property
    def is_open(self) -> bool:
        """True between the first and the last call of a window."""
        return self.taken > 0

    def check(self, size: int) -> None:
        """Check that a call fits into the open window, or starts one of `size` calls.

        Raises:
            ValueError: If `size` is below 1.
            LoopError: If the open window has another size.
        """
        if size < 1:
            raise ValueError(f"accumulate must be at least 1, got {size}")
        if self.is_open and size != self._size:
            raise LoopError(
                f"accumulate={size} within a window of {self._size} calls, after {self.taken} of them.",
                "After an optimiser step that ends a window early, call after_step().",
            )

    def require_closed(self, what: str) -> None:
        """Reject something that must not happen within a window.

        Raises:
            LoopError: If a window is open.
        """
        if self.is_open:
            raise LoopError(
                f"{what} within a window of {self._size} calls, after {self.taken} of them.",
                "An outer step is possible at the first call of a window, or after the window's last call.",
            )

    def count(self, size: int) -> bool:
        """Count a call; return True if it was the last one of its window."""
        self._size, self.taken = size, self.taken + 1
        return self.taken == size and self.close()

    def close(self) -> bool:
        """End the window; return True if one was open."""
        was_open, self.taken = self.is_open, 0
        return was_open
