"""The outer problem: everything that a scheme needs to choose its direction q."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, autograd, nn

from meltr.autograd.leaves import hooks_withheld
from meltr.autograd.random_state import RandomState
from meltr.autograd.vectors import Direction, add, dense, displaced, fast_norm
from meltr.combiners.base import sensitivities
from meltr.errors import UserError
from meltr.hypergradients.loss_values import BatchValues, LossValues
from meltr.hypergradients.objective import regulariser_slope
from meltr.hypergradients.rows import Rows
from meltr.hypergradients.setup import LOW_PRECISION

ROWS_KEPT = 3
"""Largest number of losses whose rows of J are kept: they give u, v and g at once, for (T+1) gradients of memory."""


def _silent(line: str) -> None:
    """Say nothing."""


@dataclass
class OuterProblem:
    """The outer problem at the current w.

    Args:
        parameters: The parameters that the outer step considers: w, or those in scope.
        auxiliary: The losses l(w) that the combiner sees; J is their Jacobian.
        combiner: m.
        combined: m(l), shape ().
        sensitivities: The task weights a = dm/dl, shape (T+1,).
        gamma: Weight of the regulariser of eq. 6.
        primary: The primary loss on another batch; None: the first loss of `auxiliary` (shared batch).
        keep_rows: Compute the gradient of every task once and keep it (see `ROWS_KEPT`).
        retain_graph: Keep the graph of `auxiliary` when the rows are kept; otherwise only the rows can be used.
        rows_for_inner_step: The inner step uses the kept rows too: take them for every leaf that the losses reach.
        inner_optimizer: The optimiser of w, for schemes that use its step; None if unknown.
        others: Maps i to the losses on independent batch i, for schemes that need independent batches; None: there are
            none.
        combiner_state: The generators before the combiner computed a, so that dropout is drawn once per outer step;
            None if the combiner draws nothing.
        log: Called with one line of text when an estimator has made a choice.
    """

    parameters: Sequence[Tensor]
    auxiliary: LossValues
    combiner: nn.Module
    combined: Tensor
    sensitivities: Tensor
    gamma: float = 0.0
    primary: LossValues | None = None
    keep_rows: bool = False
    retain_graph: bool = True
    rows_for_inner_step: bool = False
    inner_optimizer: torch.optim.Optimizer | None = None
    others: Callable[[int], LossValues] | None = None
    combiner_state: RandomState | None = field(default=None, repr=False)
    log: Callable[[str], None] = field(default=_silent, repr=False)
    _ahead: Tensor | None = field(default=None, repr=False)
    _rows: Rows | None = field(default=None, repr=False)
    _second_order: dict[BatchValues, list[Tensor | None]] = field(default_factory=dict, repr=False)

    @property
    def size(self) -> int:
        """Number of losses, T+1."""
        return self.auxiliary.size

    @property
    def rows(self) -> Rows | None:
        """The rows of this process' J if they are kept: row t is the gradient of task t."""
        return self._rows

    def row(self, task: int) -> Direction:
        """Return this process' share of the gradient of task number `task`: one backward pass; the graph is kept."""
        if self._rows is not None:
            return self._rows.row(task)
        return self.auxiliary.local_vjp(self.auxiliary.only(task), self.parameters)

    def primary_gradient(self) -> Direction:
        """Return v = grad_w L_pri (see `objective.primary_objective`) from kept rows or by one backward pass."""
        if self.keep_rows and self._rows is None:
            self._rows = self.auxiliary.rows(
                self.parameters, retain=self.retain_graph, everywhere=self.rows_for_inner_step
            )
        slope = regulariser_slope(self.auxiliary.values, self.combined, self.sensitivities, self.gamma)
        if self.primary is not None:
            own = self.primary.vjp(self.primary.only(0), self.parameters)
            return own if slope is None else add(own, self.combine(slope))
        if slope is None:
            return self.combine(None)
        return self.combine(torch.cat([slope[:1] + 1, slope[1:]]))

    @contextmanager
    def one_draw(self) -> Iterator[None]:
        """Within this context the combiner draws the same random numbers as for a; afterwards generators are restored.

        Otherwise a combiner with dropout would be a different function at every use, and the difference of two of its
        gradients would be noise divided by a small number.
        """
        if self.combiner_state is None:
            yield
            return
        now = self.auxiliary.setup.random_state()
        self.combiner_state.restore()
        try:
            yield
        finally:
            now.restore()

    def sensitivities_at(self, losses: Tensor) -> tuple[Tensor, Tensor]:
        """Return m and a at other losses, shape (T+1,), with the same random numbers (see `one_draw`)."""
        with self.one_draw():
            return sensitivities(self.combiner, losses)

    def unified_gradient(self) -> Direction:
        """Return u = grad_w L_aux = J^T a from kept rows or by one weighted backward pass; the graph is kept."""
        return self.combine(self.sensitivities)

    def unified_gradient_with_graph(self, losses: BatchValues) -> list[Tensor | None]:
        """Return u with its graph, which later products of this outer step use again.

        Args:
            losses: Losses of the problem, or on an independent batch.
        """
        if losses not in self._second_order:
            dtype = losses.values.dtype
            stacked = torch.stack([part if part.dtype == dtype else part.to(dtype) for part in losses.parts])
            with torch.enable_grad(), self.one_draw(), torch.autocast(stacked.device.type, enabled=False):
                combined = self.combiner(stacked).reshape(())
                with hooks_withheld(self.parameters):
                    found = autograd.grad(combined, self.parameters, create_graph=True, allow_unused=True)
            self._second_order[losses] = list(found)
        return self._second_order[losses]

    def combine(self, weights: Tensor | None) -> Direction:
        """Return J^T weights, averaged over processes, for weights of shape (T+1,); None: the primary loss alone.

        Computed from the kept rows, or by one weighted backward pass.
        """
        if self._rows is None:
            wanted = self.auxiliary.only(0) if weights is None else list(weights)
            return self.auxiliary.vjp(wanted, self.parameters)
        total = [dense(part) for part in self._rows.row(0)] if weights is None else self._rows.combination(weights)
        return self.auxiliary.setup.sharing.mean_direction(total, self.parameters)

    def primary_gradient_now(self) -> Direction:
        """Return grad_w L_pri at the current, displaced weights (see `displaced`): a forward and a backward pass.

        If the primary loss has its own batch and gamma is not 0, each batch needs both passes. The losses are kept for
        the direct term, which is taken at the same weights (see `primary_losses`).
        """
        skipped = self.primary is not None and self.gamma == 0
        auxiliary = None if skipped else self.auxiliary.run(graph=True)
        primary = None if self.primary is None else self.primary.run(graph=True)
        if auxiliary is None:
            assert primary is not None
            return primary.vjp(primary.only(0), self.parameters)
        self._ahead = auxiliary.values
        combined, a = self.sensitivities_at(auxiliary.values)
        slope = regulariser_slope(auxiliary.values, combined, a, self.gamma)
        if primary is None:
            first = torch.zeros_like(a)
            first[:1].fill_(1.0)
            return auxiliary.vjp(list(first if slope is None else first + slope), self.parameters)
        own = primary.vjp(primary.only(0), self.parameters)
        return own if slope is None else add(own, auxiliary.vjp(list(slope), self.parameters))

    @property
    def primary_losses(self) -> Tensor:
        """The losses l where the scheme takes L_pri, shape (T+1,): at w, or at the look-ahead weights."""
        return self.auxiliary.values if self._ahead is None else self._ahead

    def require_precision(self, what: str, instead: str) -> None:
        """Reject differences in weights whose rounding is coarser than the displacement.

        Args:
            what: The scheme or estimator that takes the difference.
            instead: A setting that needs no difference.

        Raises:
            UserError: If a parameter is float16 or bfloat16.
        """
        coarse = next((parameter.dtype for parameter in self.parameters if parameter.dtype in LOW_PRECISION), None)
        if coarse is not None:
            kind = str(coarse).removeprefix("torch.")
            raise UserError(
                f"{what} moves weights by less than {kind} can tell apart.",
                f"Use --set {instead}, or keep the weights in float32 under autocast (Setup(autocast=torch.{kind})).",
            )

    def displaced(
        self, direction: Direction, *, overwrite: bool = False
    ) -> AbstractContextManager[Callable[[float], None]]:
        """Return a context in which the weights can be displaced along `direction` (see `vectors.displaced`)."""
        return displaced(self.parameters, direction, self.auxiliary.setup.sharing.moved, overwrite=overwrite)

    def dot(self, one: Direction, other: Direction) -> Tensor:
        """Return the inner product of two directions, float64, shape ()."""
        return self.auxiliary.setup.sharing.dot(one, other)

    def norm(self, direction: Direction) -> float:
        """Return the Euclidean norm of a direction."""
        return float(self.length(direction))

    def length(self, direction: Direction) -> Tensor:
        """Return the Euclidean norm of a direction on its device, float64, shape ()."""
        if self.auxiliary.setup.sharing.whole_weights and self.auxiliary.setup.device.type == "cuda":
            return fast_norm(direction)
        return self.dot(direction, direction).sqrt()

    def learning_rates(self) -> list[float]:
        """Return the learning rate of every parameter.

        Raises:
            UserError: If the inner optimiser is unknown, has no learning rate, or does not hold one of the parameters.
        """
        rates: dict[int, float] = {}
        groups = () if self.inner_optimizer is None else self.inner_optimizer.param_groups
        for group in groups:
            if not isinstance(group.get("lr"), (int, float, Tensor)):
                raise UserError(
                    f"This scheme needs the learning rates of the inner optimiser, but "
                    f"{type(self.inner_optimizer).__name__} has lr={group.get('lr')!r}: it chooses its own rates.",
                    "Give scheme 'itd' a step size (ITD(step=0.1), --set step=0.1), or use another scheme.",
                )
            rates.update({id(parameter): float(group["lr"]) for parameter in group["params"]})
        if any(id(parameter) not in rates for parameter in self.parameters):
            raise UserError(
                "This scheme takes one look-ahead step of the inner optimiser, which it was not given.",
                "Pass inner_optimizer=... to Bilevel, or give scheme 'itd' a step size: ITD(step=0.1), --set step=0.1.",
            )
        return [rates[id(parameter)] for parameter in self.parameters]
