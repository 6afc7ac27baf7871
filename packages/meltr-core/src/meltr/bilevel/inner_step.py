"""The inner step: three ways to compute the inner gradient, with the same effect.

With or without an outer step before it, a call adds to ``.grad`` of every leaf that the losses reach what
``sum(a[t] * losses[t]).backward()`` would add, and calls each gradient hook once, with the whole gradient.
"""

from __future__ import annotations

import abc
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn

from meltr.autograd.vectors import scale
from meltr.bilevel.draws import CombinerDraws
from meltr.bilevel.own_rule import OwnRule
from meltr.bilevel.weights import Weights
from meltr.combiners.base import GradientCombiner
from meltr.errors import UserError
from meltr.hypergradients.combiner_function import CombinerFunction
from meltr.hypergradients.loss_values import LossValues
from meltr.hypergradients.rows import Rows
from meltr.parallel.sharing import Sharing


class InnerStep(abc.ABC):
    """Adds the inner gradient J^T a to ``.grad``."""

    averaged_by_backward = True
    """True if the forward pass must prepare the backward pass to average over processes."""

    @abc.abstractmethod
    def take(self, losses: LossValues, rows: Rows | None, step: int, share: float) -> tuple[Tensor, Tensor]:
        """Add the inner gradient to ``.grad``; return m(l), shape (), and a, shape (T+1,).

        Args:
            losses: l, with their graph or the functions to rebuild it.
            rows: The rows of J, if the preceding outer step kept them; they are consumed.
            step: Inner steps taken so far.
            share: Factor of the gradient: 1 / n for one of n micro-batches that come one call at a time.

        Raises:
            ValueError: If no loss depends on a leaf that requires a gradient.
        """


class ByBackward(InnerStep):
    """One backward pass of the losses, weighted by a = dm/dl.

    Args:
        function: m.
        draws: The combiner's random numbers.
        rule: The training rule of a self-trained combiner; None: the combiner has no such rule.
    """

    def __init__(self, function: CombinerFunction, draws: CombinerDraws, rule: OwnRule | None = None) -> None:
        self._function, self._draws, self._rule = function, draws, rule

    @property
    def follows_rule(self) -> bool:
        """True if a self-trained combiner's rule sees every step."""
        return self._rule is not None

    def take(self, losses: LossValues, rows: Rows | None, step: int, share: float) -> tuple[Tensor, Tensor]:
        """Take the backward pass; it frees the graph."""
        combined, a = self.task_weights(losses, step)
        with self._watched(losses):
            losses.backward(a * share)
        return combined, a

    def task_weights(self, losses: LossValues, step: int) -> tuple[Tensor, Tensor]:
        """Return m(l), shape (), and a = dm/dl, shape (T+1,); arguments as in `take`."""
        with self._draws.of_step(step):
            return self._function.task_weights(losses.values)

    def _watched(self, losses: LossValues) -> AbstractContextManager[None]:
        return nullcontext() if self._rule is None else self._rule.watching(losses)


class ByKeptRows(ByBackward):
    """Weights the rows of J that an outer step kept, without a backward pass; without rows, acts as `ByBackward`."""

    def take(self, losses: LossValues, rows: Rows | None, step: int, share: float) -> tuple[Tensor, Tensor]:
        """Consume the rows, or take the backward pass."""
        if rows is None:
            return super().take(losses, rows, step, share)
        combined, a = self.task_weights(losses, step)
        losses.add_gradient(rows, rows.spend(a * share))
        return combined, a


class ByRule(InnerStep):
    """Lets the combiner compute the inner gradient from the gradients of all tasks (`GradientCombiner`).

    The combiner sees the rows of J with respect to w. Other leaves that the losses reach get the gradient of the
    weighted sum, with the task weights that correspond to the combiner's gradient.

    Args:
        combiner: The combiner.
        weights: The parameters w.
        draws: The combiner's random numbers.
    """

    averaged_by_backward = False

    def __init__(self, combiner: GradientCombiner, weights: Weights, draws: CombinerDraws) -> None:
        self._combiner, self._weights, self._draws = combiner, weights, draws

    def take(self, losses: LossValues, rows: Rows | None, step: int, share: float) -> tuple[Tensor, Tensor]:
        """Take one backward pass per task and call the combiner.

        Raises:
            UserError: If a gradient is sparse or complex.
        """
        w, sharing = self._weights.now(), losses.setup.sharing
        with losses.setup.preserved_buffers():  # a backward pass through checkpointed regions updates them
            rows = losses.rows(w, retain=False, everywhere=True)
        if rows.has_sparse():
            raise UserError(
                f"{type(self._combiner).__name__} needs dense gradients, but a weight has sparse ones.",
                "Make the layer without sparse=True (nn.Embedding, nn.EmbeddingBag), or use a combiner of loss values.",
            )
        if any(parameter.is_complex() for parameter in w):
            raise UserError(
                f"{type(self._combiner).__name__} needs real gradients, but a weight is complex.",
                "Store its real and imaginary parts (torch.view_as_real), or use a combiner of loss values.",
            )
        averaged = [sharing.mean_direction(row, w) for row in rows.all()]
        with self._draws.of_step(step):
            gradient, a = self._combiner.from_gradients(losses.values, averaged)
        whole = [*gradient, *rows.rest(a)]
        losses.add_gradient(rows, whole if share == 1 else scale(whole, share), averaged=True)
        return (a * losses.values).sum(), a


def inner_step_of(
    combiner: nn.Module,
    function: CombinerFunction,
    weights: Weights,
    *,
    draws: CombinerDraws,
    rule: OwnRule | None,
    keeps_rows: bool,
    sharing: Sharing,
) -> InnerStep:
    """Choose how the inner gradient is computed.

    Args:
        combiner: m.
        function: m, with the parameters phi.
        weights: The parameters w.
        draws: The combiner's random numbers.
        rule: The training rule of a self-trained combiner; None: the combiner has no such rule.
        keeps_rows: True if outer steps may keep the rows of J for the inner step.
        sharing: The processes.

    Raises:
        UserError: If the combiner needs whole task gradients, but the weights are sharded.
    """
    if isinstance(combiner, GradientCombiner):
        if not sharing.whole_weights:
            raise UserError(
                f"{type(combiner).__name__} needs whole task gradients, but the weights are sharded.",
                "Use --set parallel=ddp.",
            )
        return ByRule(combiner, weights, draws)
    if keeps_rows and sharing.whole_weights:
        return ByKeptRows(function, draws)
    return ByBackward(function, draws, rule)
