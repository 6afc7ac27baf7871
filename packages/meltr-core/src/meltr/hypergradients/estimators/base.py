"""The base class of estimators: objects that compute g = J q."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from meltr.autograd.vectors import Direction
from meltr.hypergradients.loss_values import LossValues
from meltr.hypergradients.passes import Passes
from meltr.hypergradients.problem import OuterProblem


class Estimator(abc.ABC):
    """Computes g = J q. An estimator with state serves one training loop only.

    Attributes:
        name: The name used with ``--set estimator=``.
        needs_whole_weights: True if it does not support weights that are sharded over processes.
        tolerance: Relative difference from one backward pass per task above which the first outer step warns, and that
            pass takes the estimator's place; five times as much in low precision. None: no check.
    """

    name: ClassVar[str]
    needs_whole_weights: ClassVar[bool] = False
    tolerance: ClassVar[float | None] = None

    @abc.abstractmethod
    def __call__(self, problem: OuterProblem, direction: Direction) -> Tensor:
        """Return g = J q, shape (T+1,), averaged over processes.

        Weights, buffers and generators are restored. The contents of `direction` may be overwritten.

        Args:
            problem: The outer problem; its `log` takes lines that the user should see.
            direction: q, one tensor per parameter; None where it is zero.
        """

    def keeps_rows(self, losses: LossValues) -> bool:
        """Tell whether to keep the gradients of all tasks, which then give v, g and the next inner gradient.

        Args:
            losses: Losses of an outer step.
        """
        return False

    def most(self, size: int) -> Passes:
        """Return an upper bound of what the next call costs; by default that of a choice among all estimators of core.

        Calls with the same bound are expected to cost the same, see ``bilevel.budget``.

        Args:
            size: T+1, the number of losses.
        """
        return Passes(forward=32, backward=size)

    @property
    def needs_second_derivative(self) -> bool:
        """True if the losses are differentiated twice: attention then runs on the math kernel."""
        return False

    @property
    def reliable(self) -> bool:
        """False if the estimator has found its own g to be wrong: another one then takes its place."""
        return True

    @property
    def checks_itself(self) -> bool:
        """True if the next call compares g with one backward pass per task by itself."""
        return False

    @property
    def chosen(self) -> str | None:
        """Name of the estimator that is used: its own; None if that is not decided yet."""
        return self.name

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, as plain values and tensors; empty if there is no state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state that `state_dict` returned.

        Raises:
            ValueError: If the state belongs to another estimator.
        """
        if state:
            raise ValueError(f"estimator {self.name!r} has no state, got one with {', '.join(state)}")
