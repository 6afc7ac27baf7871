"""The outer step: trains the combiner so that an inner step on its loss lowers the primary loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from meltr.autograd.vectors import Direction
from meltr.bilevel.average import AveragedAlignment
from meltr.bilevel.checks import check_layout
from meltr.bilevel.combiner_update import CombinerUpdate
from meltr.bilevel.draws import CombinerDraws
from meltr.bilevel.results import OuterResult
from meltr.bilevel.weights import OuterWeights
from meltr.hypergradients.combiner_function import CombinerFunction
from meltr.hypergradients.estimators.checking import EstimatorInUse
from meltr.hypergradients.loss_values import LossValues
from meltr.hypergradients.micro_batches import MicroBatches
from meltr.hypergradients.problem import OuterProblem
from meltr.hypergradients.rows import Rows
from meltr.hypergradients.schemes import Scheme


@dataclass(frozen=True)
class OuterRule:
    """How an outer step computes the hypergradient.

    Args:
        scheme: Chooses the direction q.
        estimator: Computes g = J q.
        gamma: Weight of the regulariser in the primary objective (eq. 6).
        direct_term: Add the direct derivative of the regulariser with respect to phi.
        inner_optimizer: The optimiser of w, for schemes that use its step; None if unknown.
    """

    scheme: Scheme
    estimator: EstimatorInUse
    gamma: float
    direct_term: bool
    inner_optimizer: torch.optim.Optimizer | None


class OuterStep:
    """Computes phi's gradient and takes a step of the outer optimiser.

    Args:
        function: m, with the parameters phi.
        rule: How the hypergradient is computed.
        update: Passes the gradient to the outer optimiser.
        weights: The parameters that an outer step considers.
        draws: The combiner's random numbers.
        average: The moving average of g.
        saw: Called with g, shape (T+1,), before it is averaged.
        log: Called with one line of text when a choice is made.

    Attributes:
        taken: Outer steps taken so far.
    """

    def __init__(
        self,
        function: CombinerFunction,
        rule: OuterRule,
        *,
        update: CombinerUpdate,
        weights: OuterWeights,
        draws: CombinerDraws,
        average: AveragedAlignment,
        saw: Callable[[Tensor], None],
        log: Callable[[str], None],
    ) -> None:
        self._function, self._rule, self._update = function, rule, update
        self._weights, self._draws, self._average, self._saw, self._log = weights, draws, average, saw, log
        self.taken = 0

    def count_from(self, taken: int) -> None:
        """Set the number of outer steps taken."""
        self.taken = taken

    def take(
        self,
        auxiliary: LossValues,
        primary: LossValues | None,
        others: Callable[[int], LossValues] | None,
        *,
        step: int,
        share_rows: bool = True,
    ) -> tuple[OuterResult, Rows | None]:
        """Train the combiner once; return the result, and the rows of J if the inner step can use them.

        Args:
            auxiliary: All losses; their graph is kept unless the rows are.
            primary: The primary loss on another batch; None: the first loss of `auxiliary`.
            others: Maps i to the losses on independent batch i; None if there are none.
            step: Inner steps taken so far.
            share_rows: False if the inner step has other losses, and must find the graph of `auxiliary` whole.
        """
        share_rows = share_rows and self._weights.all
        problem = self._problem(auxiliary, primary, others, step, share_rows=share_rows)
        with auxiliary.setup.preserved_buffers():  # a backward pass through checkpointed regions updates them
            direction = self._rule.scheme.direction(problem)
            if all(part is None for part in direction) and not self._rule.direct_term:
                return self._at_rest(auxiliary.values), problem.rows if share_rows else None
            products = self._products(problem, direction)
        direct_at = problem.primary_losses if self._rule.direct_term else None
        with problem.one_draw():
            result = self.conclude(auxiliary.values, products, direct_at)
        return result, problem.rows if share_rows else None

    def parameters_of(self, losses: LossValues) -> list[Tensor]:
        """Return the parameters that an outer step with these losses considers."""
        return self._weights.of(losses)

    def take_along(
        self, losses: LossValues, parameters: Sequence[Tensor], direction: Direction, *, step: int
    ) -> OuterResult:
        """Train the combiner with g = J q for a q that is known; the losses may have lost their graph.

        Args:
            losses: All losses; they are evaluated again.
            parameters: The parameters that the outer step considers.
            direction: q, one entry per parameter; its contents may be overwritten.
            step: Inner steps taken so far.
        """
        again = MicroBatches(losses.functions(), losses.values)
        problem = self._problem(again, None, None, step, share_rows=False, parameters=parameters)
        with losses.setup.preserved_buffers():
            products = self._products(problem, direction)
        with problem.one_draw():
            return self.conclude(losses.values, products, losses.values if self._rule.direct_term else None)

    def conclude(self, losses: Tensor, products: Tensor, direct_at: Tensor | None = None) -> OuterResult:
        """Train the combiner with a gradient alignment that is known.

        Args:
            losses: l, shape (T+1,).
            products: g, shape (T+1,).
            direct_at: Losses at which to add the regulariser's own derivative; None: do not add it.
        """
        self._saw(products)
        products = self._average.update(products)
        gradients = self._function.gradient(losses, products, direct_at)
        update = self._update.take(gradients, products, what="outer step skipped: the hypergradient is not finite")
        self.taken += 1
        return OuterResult(products, update.norm, update.finite)

    def _at_rest(self, losses: Tensor) -> OuterResult:
        """Return the result of an outer step whose direction is zero: phi has no gradient."""
        self.taken += 1
        update = self._update.take([None] * self._function.size, what="")
        return OuterResult(losses.new_zeros(len(losses), dtype=torch.float64), update.norm, update.finite)

    def _problem(
        self,
        auxiliary: LossValues,
        primary: LossValues | None,
        others: Callable[[int], LossValues] | None,
        step: int,
        *,
        share_rows: bool,
        parameters: Sequence[Tensor] | None = None,
    ) -> OuterProblem:
        with self._draws.of_step(step):
            state = auxiliary.setup.random_state() if self._function.draws else None
            combined, a = self._function.task_weights(auxiliary.values)
        rule, known = self._rule, parameters is not None
        parameters = self._weights.of(auxiliary) if parameters is None else parameters
        check_layout(parameters)
        return OuterProblem(
            parameters,
            auxiliary,
            self._function.combiner,
            combined,
            a,
            gamma=rule.gamma,
            primary=primary,
            keep_rows=not known and rule.estimator.now.keeps_rows(auxiliary),
            # The inner gradient outside the scope, and second derivatives, need the graph after the rows are computed.
            retain_graph=not share_rows or rule.scheme.needs_second_derivative,
            rows_for_inner_step=share_rows,
            inner_optimizer=rule.inner_optimizer,
            others=others,
            combiner_state=state,
            log=self._log,
        )

    def _products(self, problem: OuterProblem, direction: Direction) -> Tensor:
        if all(part is None for part in direction):
            return torch.zeros(problem.size, dtype=torch.float64, device=problem.auxiliary.values.device)
        return self._rule.estimator.products(problem, direction, taken=self.taken)
