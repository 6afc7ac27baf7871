"""What inner and outer steps cost, counted in floating-point operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from meltr.autograd.flops import FlopCounter
from meltr.hypergradients.estimators.checking import EstimatorInUse
from meltr.hypergradients.schemes import Scheme
from meltr.hypergradients.setup import ModelSetup
from meltr.torch_private import is_compiled

SHARED = 2
"""Forward passes of an outer step besides those of scheme and estimator: a batch of its own, losses once more."""

ALONE = ":alone"
"""Marks the kind of an outer step without an inner step."""


class Price(NamedTuple):
    """The price of an outer step.

    Args:
        kind: Outer steps of one kind cost the same.
        operations: Floating-point operations, or passes where those cannot be counted.
        counted: False if it is an upper bound.
    """

    kind: str
    operations: float
    counted: bool


class Prices:
    """Counts one inner step, and one outer step of every kind: once, and again when the estimator changes.

    The price of an outer step is what a call with it takes above a call without. Before an outer step of its kind has
    been counted, the price is an upper bound: the passes that scheme and estimator take at most, at the counted price
    of a pass. Where nothing can be counted (compiled models, losses without a matrix product) a forward pass counts as
    1 and a backward pass as 2, and the bounds are the prices.

    Batches of one run are taken to cost the same. Several processes use their mean.

    Args:
        setup: Model and processes.
        scheme: Chooses the direction.
        estimator: Computes g, and may be exchanged.
        log: Called with one line of text.
    """

    def __init__(
        self, setup: ModelSetup, scheme: Scheme, estimator: EstimatorInUse, log: Callable[[str], None]
    ) -> None:
        self._setup, self._scheme, self._estimator = setup, scheme, estimator
        self._counted, self._log = True, log
        self._forward = self._backward = 0.0
        self.inner = 0.0
        """Operations of a call without an outer step; 0 if not counted yet."""
        self._outer: dict[str, float] = {}

    def next(self, size: int, taken: int, *, alone: bool = False) -> Price:
        """Return the price of the next outer step: what was counted for its kind, or an upper bound.

        Args:
            size: T+1, the number of losses.
            taken: Outer steps taken before.
            alone: True if it comes without an inner step.
        """
        estimator, scheme = self._estimator.now.most(size), self._scheme.most()
        check = size if self._estimator.checks(taken) else 0
        forward = SHARED + estimator.forward + scheme.forward
        backward = estimator.backward + scheme.backward + check
        kind = f"{self._estimator.now.chosen}:{forward}:{backward}{ALONE if alone else ''}"
        bound = forward * self._forward + backward * self._backward
        return Price(kind, self._outer.get(kind, bound), kind in self._outer)

    def paid(self, price: Price) -> float:
        """Return what an outer step has cost whose price was asked before it."""
        return self._outer.get(price.kind, price.operations)

    @contextmanager
    def counting(self, kind: str | None) -> Iterator[None]:
        """Within this context, count a call: one with an outer step of this kind, or None: without an outer step."""
        known = self.inner > 0 if kind is None else kind in self._outer
        if known:
            yield
            return
        if self._can_count(kind):
            with FlopCounter() as counter:
                yield
            self._keep(kind, float(counter.total), float(counter.backward))
        else:
            yield
            if self.inner == 0:
                self._in_passes()

    def _can_count(self, kind: str | None) -> bool:
        """Tell whether to count; not while ``auto`` times its candidates on a GPU, which counting would slow down."""
        if not self._counted or any(map(is_compiled, self._setup.model.modules())):
            return False
        return kind is None or self._estimator.now.chosen is not None or self._setup.device.type != "cuda"

    def _keep(self, kind: str | None, total: float, backward: float) -> None:
        sharing = self._setup.sharing
        if not sharing.one_process:
            found = torch.tensor([total, backward], dtype=torch.float64, device=self._setup.device)
            total, backward = sharing.mean(found).tolist()
        if kind is not None:
            self._outer[kind] = max(0.0, total - (0.0 if kind.endswith(ALONE) else self.inner))
        elif total == 0:
            self._in_passes()
        else:
            self.inner, self._forward, self._backward = total, total - backward, backward

    def _in_passes(self) -> None:
        self._counted = False
        self.inner, self._forward, self._backward = 3.0, 1.0, 2.0
        self._log("budget: operations cannot be counted here; passes are counted at their largest number instead")

    def state_dict(self) -> dict[str, Any]:
        """Return the prices as plain values."""
        passes = {"forward": self._forward, "backward": self._backward}
        return {"inner": self.inner, **passes, "outer": dict(self._outer), "counted": self._counted}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state that `state_dict` returned."""
        self.inner, self._counted = float(state["inner"]), bool(state["counted"])
        self._forward, self._backward = float(state["forward"]), float(state["backward"])
        self._outer = dict(state["outer"])
