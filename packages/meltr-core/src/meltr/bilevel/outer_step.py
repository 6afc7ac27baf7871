"""The outer step: trains the combiner so that an inner step on its loss lowers the primary loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from meltr.autograd.vectors import Direction
from meltr.bilevel.combiner_update import CombinerUpdate
from meltr.bilevel.draws import CombinerDraws
from meltr.bilevel.results import OuterResult
from meltr.bilevel.weights import OuterWeights
from meltr.combiners.base import sensitivities
from meltr.hypergradients.estimators import Estimator
from meltr.hypergradients.loss_values import LossValues
from meltr.hypergradients.outer_gradient import outer_gradient
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
    estimator: Estimator
    gamma: float
    direct_term: bool
    inner_optimizer: torch.optim.Optimizer | None


class OuterStep:
    """Computes phi's gradient and takes a step of the outer optimiser.

    Args:
        combiner: m, with the parameters phi.
        rule: How the hypergradient is computed.
        update: Passes the gradient to the outer optimiser.
        weights: The parameters that an outer step considers.
        draws: The combiner's random numbers.
        log: Called with one line of text when a choice is made or a step is skipped.

    Attributes:
        taken: Outer steps taken so far.
    """

    def __init__(
        self,
        combiner: nn.Module,
        rule: OuterRule,
        *,
        update: CombinerUpdate,
        weights: OuterWeights,
        draws: CombinerDraws,
        log: Callable[[str], None],
    ) -> None:
        self._combiner, self._rule, self._update = combiner, rule, update
        self._weights, self._draws, self._log = weights, draws, log
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
    ) -> tuple[OuterResult, Rows | None]:
        """Train the combiner once; return the result, and the rows of J if the inner step can use them.

        Args:
            auxiliary: All losses; their graph is kept unless the rows are.
            primary: The primary loss on another batch; None: the first loss of `auxiliary`.
            others: Maps i to the losses on independent batch i; None if there are none.
            step: Inner steps taken so far.
        """
        problem = self._problem(auxiliary, primary, others, step)
        with auxiliary.setup.preserved_buffers():  # a backward pass through checkpointed regions updates them
            products = self._products(problem, self._rule.scheme.direction(problem))
        direct_at = problem.primary_losses if self._rule.direct_term else None
        with problem.one_draw():
            gradients = outer_gradient(
                self._combiner, auxiliary.values, products, gamma=self._rule.gamma, direct_at=direct_at
            )
        result = self._apply(gradients, products)
        self.taken += 1
        return result, problem.rows if self._weights.all else None

    def _problem(
        self,
        auxiliary: LossValues,
        primary: LossValues | None,
        others: Callable[[int], LossValues] | None,
        step: int,
    ) -> OuterProblem:
        with self._draws.of_step(step):
            state = auxiliary.setup.random_state()
            combined, a = sensitivities(self._combiner, auxiliary.values)
        parameters, rule = self._weights.of(auxiliary), self._rule
        return OuterProblem(
            parameters,
            auxiliary,
            self._combiner,
            combined,
            a,
            gamma=rule.gamma,
            primary=primary,
            keep_rows=rule.estimator.keeps_rows(auxiliary),
            # The inner gradient outside the scope, and second derivatives, need the graph after the rows are computed.
            retain_graph=not self._weights.all or rule.scheme.needs_second_derivative,
            rows_for_inner_step=self._weights.all,
            inner_optimizer=rule.inner_optimizer,
            others=others,
            combiner_state=state,
            log=self._log,
        )

    def _products(self, problem: OuterProblem, direction: Direction) -> Tensor:
        if all(part is None for part in direction):
            return torch.zeros(problem.size, dtype=torch.float64, device=problem.auxiliary.values.device)
        return self._rule.estimator(problem, direction)

    def _apply(self, gradients: list[Tensor | None], products: Tensor) -> OuterResult:
        averaged = self._update.averaged(gradients)
        present = [gradient for gradient in averaged if gradient is not None]
        size = torch.nn.utils.get_total_norm(present) if present else torch.zeros((), device=products.device)
        finite = bool(torch.isfinite(size)) and bool(torch.isfinite(products).all())
        if finite:
            self._update.step(averaged)
        else:
            self._log("outer step skipped: the hypergradient is not finite")
        return OuterResult(products, size, applied=finite)
