"""One inner step as a combiner with a rule of its own sees it (`meltr.combiners.base.Step`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from meltr.hypergradients.evaluation import Evaluation


class OwnStep:
    """The losses of one inner step, the norms of their gradients, and the losses again after the step.

    Args:
        evaluation: The losses, with the graph or the means to make it again.
        parameters: What gradient norms are taken by.
    """

    def __init__(self, evaluation: Evaluation, parameters: Sequence[Tensor]) -> None:
        self._evaluation, self._parameters = evaluation, parameters
        self._functions, self._values = evaluation.functions(), evaluation.values

    @property
    def losses(self) -> Tensor:
        """The losses before the step, shape (T+1,)."""
        return self._values

    def gradient_norms(self) -> Tensor:
        """Return the norm of every task's gradient, shape (T+1,): one backward a task; before the step only."""
        evaluation, sharing = self._evaluation, self._evaluation.setup.sharing
        norms = []
        with evaluation.setup.preserved_buffers():
            for task in range(evaluation.size):
                row = evaluation.gradient(evaluation.only(task), self._parameters)
                norms.append(sharing.dot(row, row).sqrt().to(self._values))
        return torch.stack(norms)

    def losses_again(self) -> Tensor:
        """Return the losses of the same batch at the weights of now, shape (T+1,): one forward without a graph."""
        return torch.stack([function.again() for function in self._functions]).mean(0)

    def release(self) -> OwnStep:
        """Let go of the graph; `losses_again` still works."""
        self._evaluation = None  # type: ignore[assignment]
        return self
