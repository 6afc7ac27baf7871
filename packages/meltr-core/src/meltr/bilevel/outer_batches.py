"""The batches of an outer step: that of the inner step that follows, a part of it, or two of its own."""

from __future__ import annotations

from collections.abc import Callable

from meltr.autograd.losses import Compute
from meltr.bilevel.beginning import Beginning
from meltr.bilevel.evaluations import Evaluations
from meltr.bilevel.outer_step import OuterStep
from meltr.bilevel.results import OuterResult
from meltr.hypergradients.halves import Halves
from meltr.hypergradients.loss_values import LossValues
from meltr.hypergradients.rows import Rows

Others = Callable[[int], Compute] | None
"""Maps i to the loss function on independent batch i, for schemes that need such batches; None: there are none."""


class OuterBatches:
    """Evaluates what an outer step needs beside the losses of the current batch, and takes the step.

    Args:
        outer: Trains the combiner.
        evaluations: Evaluates the losses.
        beginning: Shows the combiner the first losses of a run.
    """

    def __init__(self, outer: OuterStep, evaluations: Evaluations, beginning: Beginning) -> None:
        self._outer, self._evaluations, self._beginning = outer, evaluations, beginning

    def take_shared(
        self, losses: LossValues, primary: Compute | None, others: Others, *, step: int
    ) -> tuple[OuterResult, Rows | None]:
        """Take an outer step with the losses of the batch of the next inner step.

        Args:
            losses: All losses of that batch; halves: the first for the direction, the second for the Jacobian.
            primary: Returns the primary loss on a held-out batch; None: it is that of `losses`.
            others: See `Others`.
            step: Inner steps taken so far.

        Returns:
            The result, and the rows of J if the inner step can use them.
        """
        held_out = None if primary is None else self._evaluations.aside(primary, primary=True)
        independent = self._evaluations.independent(others)
        if not isinstance(losses, Halves):
            return self._outer.take(losses, held_out, independent, step=step)
        first = losses.first if held_out is None else held_out
        return self._outer.take(losses.second, first, independent, step=step, share_rows=False)

    def take_part(self, part: Compute, primary: Compute | None, others: Others, *, step: int) -> OuterResult:
        """Take an outer step on a part of a batch, before the whole batch, so that one graph is alive at a time.

        The whole batch draws the random numbers that it would have drawn without.

        Args:
            part: Returns all losses on the part.
            primary: Returns the primary loss on a held-out batch; None: it is that of the part.
            others: See `Others`.
            step: Inner steps taken so far.
        """
        before = self._evaluations.setup.random_state()
        auxiliary = self._evaluations.aside(part)
        self._beginning.prepare(auxiliary.values, step)
        held_out = None if primary is None else self._evaluations.aside(primary, primary=True)
        found, _ = self._outer.take(auxiliary, held_out, self._evaluations.independent(others), step=step)
        before.restore()
        return found

    def take_separate(self, primary: Compute, auxiliary: Compute, others: Others, *, step: int) -> OuterResult:
        """Take an outer step on two batches of its own.

        Args:
            primary: Returns the losses of the first batch, or only its primary loss; the first entry is used.
            auxiliary: Returns all losses of the second batch.
            others: See `Others`.
            step: Inner steps taken so far.
        """
        held_out = self._evaluations.aside(primary, primary=True)
        found, _ = self._outer.take(
            self._evaluations.aside(auxiliary), held_out, self._evaluations.independent(others), step=step
        )
        return found
