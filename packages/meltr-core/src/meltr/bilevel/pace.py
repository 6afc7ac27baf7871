"""When the combiner is trained: after every K inner steps, or within a budget of operations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor

from meltr.bilevel.movement import Movement
from meltr.bilevel.prices import Price, Prices
from meltr.hypergradients.estimators.checking import EstimatorInUse
from meltr.hypergradients.schemes import Scheme
from meltr.hypergradients.setup import ModelSetup

RARELY = 8
"""If g is noise, inner steps between two outer steps as a multiple of those with which the budget is just used."""


class Pace:
    """An outer step after every K inner steps; the base class of paces that look at more.

    Args:
        every: K.

    Raises:
        ValueError: If K is below 1.
    """

    def __init__(self, every: int) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self._every = every

    def due(self, steps: int) -> bool:
        """Tell whether the next inner step starts with an outer step.

        Args:
            steps: Inner steps taken.
        """
        return steps > 0 and steps % self._every == 0

    @property
    def share(self) -> float | None:
        """Operations of the outer steps so far, divided by those of the inner steps; None if they are not counted."""
        return None

    def counting(self, *, outer: bool, steps: int, alone: bool = False) -> AbstractContextManager[None]:
        """Return a context for a call of the loop, which may count its operations.

        Args:
            outer: True if it takes an outer step.
            steps: Inner steps taken.
            alone: True if it takes no inner step.
        """
        return nullcontext()

    def took(self, size: int, *, inner: bool, outer: bool, steps: int) -> None:
        """Called after a call of the loop.

        Args:
            size: T+1, the number of losses.
            inner: True if it took an inner step, or a micro-batch of one.
            outer: True if it took an outer step.
            steps: Inner steps taken before.
        """

    def saw(self, products: Tensor) -> None:
        """Called with g of an outer step, shape (T+1,)."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed loop needs, as plain values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state that `state_dict` returned."""


class BudgetPace(Pace):
    """As often as g moves, within a budget: outer steps take at most a share of the operations of the inner steps.

    An outer step is due if two things hold. With it, all outer steps so far have taken at most `budget` times the
    operations of the inner steps so far. And K inner steps were taken since the last one, with

        K = every^s (RARELY * K_b)^(1 - s),    K_b = price of an outer step / (budget * price of an inner step),

    s the signal of `Movement` and K_b the spacing that just uses the budget. So if g moves (s = 1) outer steps come as
    often as the budget allows, at most after `every` inner steps, and use what was saved before; if g is noise (s = 0)
    they come after `RARELY` times K_b. With a larger spacing g moves more from one outer step to the next, so that s
    rises again.

    All processes decide alike: prices are means over them, and g is that of rank 0.

    Args:
        every: The smallest K.
        budget: The share, above 0 and at most 1.
        setup: Model and processes.
        scheme: Chooses the direction.
        estimator: Computes g.
        log: Called with one line of text.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self,
        every: int,
        budget: float,
        *,
        setup: ModelSetup,
        scheme: Scheme,
        estimator: EstimatorInUse,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        if not 0 < budget <= 1:
            raise ValueError(f"budget must be above 0 and at most 1 (0.05: 5 % of the operations), got {budget}")
        super().__init__(every)
        self._budget, self._log = budget, log
        self._sharing = setup.sharing
        self._prices = Prices(setup, scheme, estimator, log)
        self._movement = Movement()
        self._calls = self._size = self._start = self._last = self._taken = 0
        self._spent = 0.0
        self._asked = self._prices.next(0, 0)
        self._told: set[str] = set()

    @property
    def share(self) -> float | None:
        """Operations of the outer steps so far, divided by those of the inner steps; None before any is counted."""
        done = self._calls * self._prices.inner
        return self._spent / done if done > 0 else None

    def due(self, steps: int) -> bool:
        """Tell whether the budget allows an outer step, and K inner steps were taken since the last."""
        done = self._calls * self._prices.inner
        if done == 0 or steps - self._last < self._every:
            return False
        price = self._prices.next(self._size, self._taken)
        even = price.operations / (self._budget * done / max(1, steps - self._start))
        self._tell(price, even)
        if self._spent + price.operations > self._budget * done:
            return False
        signal = self._movement.signal()
        rare = max(float(self._every), RARELY * even)
        spacing: float = self._every**signal * rare ** (1 - signal)
        return steps - self._last >= round(spacing)

    def counting(self, *, outer: bool, steps: int, alone: bool = False) -> AbstractContextManager[None]:
        """Return a context that counts the call if its price is not known yet; the first inner step is not typical."""
        if outer:
            self._asked = self._prices.next(
                self._size, self._taken, alone=alone
            )  # the estimator may change within the call
            return self._prices.counting(self._asked.kind)
        return self._prices.counting(None) if steps > 0 else nullcontext()

    def took(self, size: int, *, inner: bool, outer: bool, steps: int) -> None:
        """Add the prices of a call."""
        if self._calls == 0:
            self._start = steps
        self._size = size
        self._calls += inner
        if outer:
            self._spent += self._prices.paid(self._asked)
            self._last = steps
            self._taken += 1

    def saw(self, products: Tensor) -> None:
        """Give g to the signal."""
        copy = products.detach().clone()
        self._sharing.broadcast([copy])
        self._movement.saw(copy)

    def _tell(self, price: Price, even: float) -> None:
        """Log the spacing that the budget allows, once for every kind of outer step; a bound only before the first."""
        if price.kind in self._told or (self._told and not price.counted):
            return
        self._told.add(price.kind if price.counted else "")
        cost = f"{'' if price.counted else 'at most '}{even * self._budget:.2f} inner steps"
        self._log(f"budget: an outer step costs {cost}, so one in {max(even, 1):.0f} uses {self._budget:.1%}")

    def state_dict(self) -> dict[str, Any]:
        """Return prices, what was spent, and the signal."""
        counters = {"calls": self._calls, "start": self._start, "last": self._last, "taken": self._taken}
        spent = {"size": self._size, "spent": self._spent, "told": sorted(self._told)}
        return {**counters, **spent, "prices": self._prices.state_dict(), "movement": self._movement.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state that `state_dict` returned; an empty one, of a run without a budget, starts anew."""
        if not state:
            return
        self._calls, self._start = int(state["calls"]), int(state["start"])
        self._last, self._taken = int(state["last"]), int(state["taken"])
        self._size, self._spent, self._told = int(state["size"]), float(state["spent"]), set(state["told"])
        self._prices.load_state_dict(state["prices"])
        self._movement.load_state_dict(state["movement"])


def pace_of(
    every: int,
    budget: float | None,
    setup: ModelSetup,
    scheme: Scheme,
    estimator: EstimatorInUse,
    log: Callable[[str], None],
) -> Pace:
    """Return the pace of a loop: fixed without a budget; see `BudgetPace` for the arguments.

    Raises:
        ValueError: If a number is out of range.
    """
    if budget is None:
        return Pace(every)
    return BudgetPace(every, budget, setup=setup, scheme=scheme, estimator=estimator, log=log)
