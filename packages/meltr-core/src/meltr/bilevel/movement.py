"""Whether the gradient alignment g moves, or only its noise shows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from meltr.devices import Delayed

MOMENTUM = 0.8
"""r, the share of the past in the moving averages: they cover about five outer steps."""

NOISE = (1 - MOMENTUM) / (1 + MOMENTUM) ** 2
"""Expected square of the tracking signal if g is a constant with independent noise."""


class Movement:
    """The tracking signal of g (Trigg, Operational Research Quarterly 15, 1964), over outer steps.

    With m a moving average of g_t and e = g_t - m its error before the update, the signal is the moving average of e
    over the root of the moving average of e^2. By the inequality of Cauchy and Schwarz its square x is at most 1, which
    it reaches if all errors have one sign and size: m lags behind a g_t that moves. If g_t is a constant with
    independent noise of variance s^2, the impulse response of the filters gives E e^2 = 2 s^2 / (1 + r) and, for the
    averaged error, 2 (1 - r) s^2 / (1 + r)^3. So x is about `NOISE` = (1 - r) / (1 + r)^2 = 0.062. For a random walk
    without noise it is (1 + r^2) / (1 + r)^2 = 0.51.

    The value used is (x - NOISE) / (1 - NOISE), at least 0, and its mean over the losses: below 0.1 for noise, about a
    third for a random walk, 1 for a trend.
    """

    def __init__(self) -> None:
        self._count = 0
        self._mean: list[float] = []
        self._error: list[float] = []
        self._square: list[float] = []
        self._unread: Delayed | None = None

    def saw(self, products: Tensor) -> None:
        """Take g of an outer step, shape (T+1,); it is read when the signal is needed."""
        self._read()
        self._unread = Delayed(products)

    def signal(self) -> float:
        """Return the signal, between 0 (noise) and 1 (a trend); 1 before it can be told, after fewer than two g."""
        self._read()
        if self._count < 2:
            return 1.0
        weight = 1 - MOMENTUM ** (self._count - 1)
        found = [
            error**2 / (square * weight) if square > 0 else 0.0
            for error, square in zip(self._error, self._square, strict=True)
        ]
        return sum(min(1.0, max(0.0, (x - NOISE) / (1 - NOISE))) for x in found) / len(found)

    def _read(self) -> None:
        """Update the averages with the g that was seen last; one that is not finite changes nothing."""
        unread, self._unread = self._unread, None
        products = [] if unread is None else unread.values()
        if not products or not all(map(math.isfinite, products)):
            return
        if self._count == 0:
            self._mean, self._error, self._square = list(products), [0.0] * len(products), [0.0] * len(products)
        self._count += 1
        share = (1 - MOMENTUM) / (1 - MOMENTUM**self._count)
        if self._count > 1:
            for place, value in enumerate(products):
                error = value - self._mean[place]
                self._error[place] += (1 - MOMENTUM) * (error - self._error[place])
                self._square[place] += (1 - MOMENTUM) * (error**2 - self._square[place])
                self._mean[place] += share * error

    def state_dict(self) -> dict[str, Any]:
        """Return the averages as plain numbers."""
        self._read()
        return {"count": self._count, "mean": self._mean, "error": self._error, "square": self._square}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state that `state_dict` returned."""
        self._unread, self._count = None, int(state["count"])
        self._mean, self._error, self._square = (list(state[name]) for name in ("mean", "error", "square"))
