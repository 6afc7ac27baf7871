"""Combiners that follow their own training rule at every inner step (`meltr.combiners.base.SelfTrained`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from meltr.bilevel.combiner_update import CombinerUpdate
from meltr.bilevel.weights import OuterWeights
from meltr.combiners.base import SelfTrained
from meltr.hypergradients.loss_values import LossValues


class OwnStep:
    """One inner step as the combiner's rule sees it (`meltr.combiners.base.Step`).

    Args:
        losses: The losses of the step, with their graph.
        parameters: The parameters that gradient norms are taken over.
        after: True if the weights have been updated: there is no graph, and there are no gradient norms.
    """

    def __init__(self, losses: LossValues, parameters: Sequence[Tensor], *, after: bool = False) -> None:
        self._graph = None if after else losses
        self._functions, self._values, self._parameters = losses.functions(), losses.values, parameters

    @property
    def losses(self) -> Tensor:
        """The losses before the step, shape (T+1,)."""
        return self._values

    def gradient_norms(self) -> Tensor:
        """Return the norm of each task's gradient, shape (T+1,), by one backward pass per task; only before the step.

        Raises:
            RuntimeError: After the step.
        """
        if self._graph is None:
            raise RuntimeError("gradient norms are available only before the optimiser's step")
        losses, sharing = self._graph, self._graph.setup.sharing
        norms = []
        with losses.setup.preserved_buffers():
            for task in range(losses.size):
                row = losses.vjp(losses.only(task), self._parameters)
                norms.append(sharing.dot(row, row).sqrt().to(self._values))
        return torch.stack(norms)

    def losses_again(self) -> Tensor:
        """Return the losses of the same batch at the current weights, shape (T+1,), by a graph-free forward pass."""
        again = (function.run(graph=False, replay=True, keep_buffers=True) for function in self._functions)
        return torch.stack([each.values for each in again]).mean(0)


class OwnRule:
    """Calls the combiner's rule at every inner step and passes the gradients it returns to the outer optimiser.

    Args:
        combiner: The combiner with the rule.
        update: Takes the step of the combiner's parameters; None: the rule changes them itself.
        weights: The parameters w.
    """

    def __init__(self, combiner: SelfTrained, update: CombinerUpdate | None, weights: OuterWeights) -> None:
        self._combiner, self._update, self._weights = combiner, update, weights
        self._waiting: OwnStep | None = None
        self.resting = False
        """True while the rule must not be called: after the first of several micro-batches of one step."""

    @property
    def evaluates_again(self) -> bool:
        """True if the losses of the next inner step will be evaluated again."""
        return self._combiner.sees_moved_weights or not self._weights.known

    @contextmanager
    def watching(self, losses: LossValues) -> Iterator[None]:
        """Within this context the inner gradient is taken: calls the rule before, and takes the combiner's step after.

        Args:
            losses: Losses of the inner step.
        """
        if self.resting:
            yield
            return
        step = OwnStep(losses, self._weights.of(losses), after=self._combiner.sees_moved_weights)
        gradients = None
        if self._combiner.sees_moved_weights:
            self._waiting = step
        else:
            gradients = self._combiner.own_gradients(step)
        yield
        if gradients is not None:
            self._apply(gradients)

    def after_step(self) -> None:
        """Call a rule that needs the weights after the optimiser's step, once per step (FAMO)."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._apply(self._combiner.own_gradients(waiting))

    def _apply(self, gradients: Sequence[Tensor | None]) -> None:
        if self._update is not None and any(gradient is not None for gradient in gradients):
            self._update.take(
                gradients, what="combiner step skipped: the gradient of the combiner's own rule is not finite"
            )
        self._combiner.after_update()
