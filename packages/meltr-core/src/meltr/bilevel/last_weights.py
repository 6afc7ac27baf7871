"""Gradient accumulation with the task weights of the preceding inner step: every micro-batch is evaluated once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from meltr.autograd.losses import Compute
from meltr.bilevel.evaluations import Evaluations
from meltr.bilevel.inner_step import ByBackward, InnerStep
from meltr.errors import UserError

AccumulateWeights = Literal["current", "last"]
"""Task weights of micro-batches: those of their own mean losses, or those of the preceding inner step."""


class LastWeights:
    """The task weights of the preceding inner step.

    m is not linear: with ``current`` weights, all micro-batches are evaluated before the first gradient, and once more
    for it. The ``last`` ones are known in advance, so each micro-batch needs one forward and one backward pass, as in
    plain gradient accumulation. A step without predecessor, and a step with an outer step, take the current ones.

    Args:
        which: ``current`` (this object then does nothing) or ``last``.
        inner: The inner step.
        combiner: Name of the combiner, for errors.

    Raises:
        ValueError: If `which` is neither.
        UserError: If the combiner needs the gradient of each task at every step.
    """

    def __init__(self, which: AccumulateWeights, inner: InnerStep, combiner: str) -> None:
        if which not in ("current", "last"):
            raise ValueError(f'accumulate_weights must be "current" or "last", got {which!r}')
        self._inner: ByBackward | None = None
        self._weights: Tensor | None = None
        if which == "last":
            if not isinstance(inner, ByBackward) or inner.follows_rule:
                raise UserError(
                    f"accumulate_weights=last needs task weights that follow from the losses; {combiner} computes them "
                    "from gradients or by a rule of its own.",
                    "Use accumulate_weights=current.",
                )
            self._inner = inner

    def served(self, compute: Compute | Sequence[Compute]) -> Sequence[Compute] | None:
        """Return the micro-batches of a call if the weights of the preceding step serve for them; else None."""
        known = self._weights is not None
        return compute if known and isinstance(compute, Sequence) and len(compute) > 1 else None

    def descend(
        self, evaluations: Evaluations, several: Sequence[Compute], step: int, share: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Add the gradient of the micro-batches to ``.grad``.

        Args:
            evaluations: How losses are evaluated.
            several: One loss function per micro-batch.
            step: Inner steps taken so far.
            share: Factor of the gradient.

        Returns:
            The mean losses l, (T+1,), m(l), (), and the task weights that were used, (T+1,).
        """
        assert self._inner is not None
        assert self._weights is not None
        used = self._weights.to(evaluations.setup.device)
        losses = evaluations.descended(several, used * share)
        combined, self._weights = self._inner.task_weights(losses, step)
        return losses.values, combined, used

    def keep(self, weights: Tensor) -> None:
        """Keep the task weights of an inner step, shape (T+1,), for the next one."""
        if self._inner is not None:
            self._weights = weights

    def state_dict(self) -> dict[str, Any]:
        """Return the weights; empty if there are none."""
        return {} if self._weights is None else {"weights": self._weights.cpu()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state that `state_dict` returned."""
        self._weights = state.get("weights") if self._inner is not None else None
