"""Algorithm 1 of the paper in loss space: the class that a plain training loop needs.

Example::

    meltr = Bilevel(model, combiner, outer_optimizer, every=3)
    for batch in loader:
        optimizer.zero_grad()
        meltr.backward(lambda: task_losses(model, batch))     # instead of loss.backward()
        optimizer.step()
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch import config as functorch_config
from torch.nn.attention import SDPBackend, sdpa_kernel

from meltr.combiners.base import Combiner, sensitivities
from meltr.hypergradients.outer_gradient import outer_gradient
from meltr.hypergradients.problem import ROWS_KEPT, Direction, OuterProblem
from meltr.hypergradients.products import Estimator, estimator
from meltr.hypergradients.products.auto import choose, rows_pay
from meltr.hypergradients.products.difference import CentralDifference
from meltr.hypergradients.replay import Losses, LossEvaluation, preserved_buffers
from meltr.hypergradients.schemes import scheme

Compute = Callable[[], Losses]


@dataclass(frozen=True)
class OuterResult:
    """What an outer step found; tensors stay on their device.

    Args:
        products: g = J q, shape (T+1,): g_t > 0 says that pulling harder on task t lowers the primary objective now.
        gradient_norm: Norm of phi's gradient before clipping, shape ().
        applied: False if the step was left out because g was not finite.
    """

    products: Tensor
    gradient_norm: Tensor
    applied: bool


@dataclass(frozen=True)
class StepResult:
    """What one call of `Bilevel.backward` found; tensors stay on their device.

    Args:
        losses: l, shape (T+1,), detached.
        combined: m(l), shape (), detached.
        sensitivities: a = dm/dl, shape (T+1,): the weights of the inner gradient.
        outer: The outer step taken before this inner gradient, if there was one.
    """

    losses: Tensor
    combined: Tensor
    sensitivities: Tensor
    outer: OuterResult | None = None


class Bilevel:
    """Descend the unified loss, and every K steps train the combiner so that doing so lowers the primary loss.

    After K inner steps Algorithm 1 evaluates the losses at the new w; the next inner step starts from the same w. So
    one forward serves both: v comes from its graph, g needs one or two forwards without a graph (or one backward per
    task), the combiner steps, and the inner gradient is taken with the new combiner.

    Args:
        model: The backbone; its trainable parameters are w, unless `parameters` are given.
        combiner: Maps the vector of losses to a scalar, e.g. `meltr.LossTransformer`.
        outer_optimizer: Optimiser of the combiner's parameters; None: the combiner stays as it is.
        every: K, inner steps between two outer steps.
        gamma: Weight of the regulariser |m(l) - sum(l)| in the primary objective (eq. 6).
        scheme_name: Which direction q (see `meltr.hypergradients.schemes`).
        estimator_name: How g = J q is computed: ``auto``, ``forward``, ``difference``, ``per_task``,
            ``double_backward``.
        direct_term: Add the regulariser's own derivative by phi.
        outer_clip_norm: Clip phi's gradient to this norm.
        parameters: The parameters w, if not all trainable ones of `model`.
        generators: Generators that the losses draw from besides the global ones; replayed for extra forwards.
        autocast: Data type of an autocast context around the losses; None: none.
        log: Called with a line when a choice is made.

    Raises:
        ValueError: If a number is out of range, or w is empty.
        UserError: If scheme or estimator is unknown.
    """

    def __init__(
        self,
        model: nn.Module,
        combiner: nn.Module,
        outer_optimizer: torch.optim.Optimizer | None = None,
        *,
        every: int = 3,
        gamma: float = 0.1,
        scheme_name: str = "aid-fp-lite",
        estimator_name: str = "auto",
        direct_term: bool = False,
        outer_clip_norm: float | None = None,
        parameters: Iterable[Tensor] | None = None,
        generators: Sequence[torch.Generator] = (),
        autocast: torch.dtype | None = None,
        log: Callable[[str], None] | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        if gamma < 0:
            raise ValueError(f"gamma must not be negative, got {gamma}")
        wanted = model.parameters() if parameters is None else parameters
        self.parameters = [parameter for parameter in wanted if parameter.requires_grad]
        if not self.parameters:
            raise ValueError("the model has no trainable parameters")
        self.model, self.combiner, self.outer_optimizer = model, combiner, outer_optimizer
        self.every, self.gamma, self.direct_term = every, gamma, direct_term
        self.outer_clip_norm, self.generators, self.autocast = outer_clip_norm, tuple(generators), autocast
        self.estimator_name = estimator_name
        if outer_optimizer is not None:
            # An outer step keeps the graph for the inner gradient; a compiled model must not give its buffers away.
            functorch_config.donated_buffer = False
        self._scheme = scheme(scheme_name)
        self._estimator: Estimator | None = None if estimator_name == "auto" else estimator(estimator_name)
        self._log = log or (lambda line: None)
        self.steps = 0
        self.outer_steps = 0

    @property
    def outer_step_due(self) -> bool:
        """True if the next call of `backward` starts with an outer step (K inner steps were taken since the last)."""
        return self.outer_optimizer is not None and self.steps > 0 and self.steps % self.every == 0

    def backward(self, compute: Compute, *, primary: Compute | None = None, outer: bool | None = None) -> StepResult:
        """Add the inner gradient grad_w m(l) to ``.grad`` of w; every K-th time train the combiner first.

        Args:
            compute: Returns the task losses of the current batch, primary first; called again for the outer step with
                the same random numbers.
            primary: Returns the primary loss on a held-out batch, for the outer step; None: the current batch serves.
            outer: Whether to take an outer step now; None: every K-th call.

        Raises:
            ValueError: If `compute` returns something else than scalars.
        """
        take_outer = self.outer_step_due if outer is None else outer and self.outer_optimizer is not None
        evaluation = self._evaluate(compute, snapshot=take_outer)
        if self.steps == 0 and isinstance(self.combiner, Combiner):
            self.combiner.prepare(evaluation.values)
        found, problem = None, None
        if take_outer:
            held_out = None if primary is None else self._evaluate_aside(primary)
            found, problem = self._outer_step(evaluation, held_out)
        combined, a = sensitivities(self.combiner, evaluation.values)
        self._inner_backward(evaluation, a, problem)
        self.steps += 1
        return StepResult(evaluation.values, combined, a, found)

    def outer_step(self, primary: Compute, auxiliary: Compute) -> OuterResult:
        """Take an outer step on two batches of their own, as the released code does with its replay buffer.

        Args:
            primary: Returns the losses (or the primary alone) of the first batch; the first one counts.
            auxiliary: Returns all losses of the second batch.

        Raises:
            ValueError: If there is no outer optimiser.
        """
        if self.outer_optimizer is None:
            raise ValueError("outer_step needs an outer_optimizer")
        held_out = self._evaluate_aside(primary)
        return self._outer_step(self._evaluate_aside(auxiliary, snapshot=True), held_out)[0]

    def state_dict(self) -> dict[str, Any]:
        """Return counters, the estimator chosen and its step size; weights and optimisers are the caller's."""
        step = self._estimator.step if isinstance(self._estimator, CentralDifference) else None
        calls = self._estimator._calls if isinstance(self._estimator, CentralDifference) else 0
        return {
            "steps": self.steps,
            "outer_steps": self.outer_steps,
            "estimator": self.estimator_name if self._estimator is not None else None,
            "difference_step": step,
            "difference_calls": calls,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.steps, self.outer_steps = int(state["steps"]), int(state["outer_steps"])
        if state["estimator"] is not None:
            self.estimator_name = state["estimator"]
            self._estimator = estimator(self.estimator_name)
        if isinstance(self._estimator, CentralDifference):
            self._estimator.step, self._estimator._calls = state["difference_step"], int(state["difference_calls"])

    def _evaluate(self, compute: Compute, *, snapshot: bool) -> LossEvaluation:
        twice = self.estimator_name == "double_backward" and self.outer_optimizer is not None
        # The fused attention kernels have no second derivative.
        attention = sdpa_kernel(SDPBackend.MATH) if twice and snapshot else contextlib.nullcontext()
        with torch.enable_grad(), attention:
            return LossEvaluation(
                compute, self.model, generators=self.generators, autocast=self.autocast, snapshot=snapshot
            )

    def _evaluate_aside(self, compute: Compute, *, snapshot: bool = False) -> LossEvaluation:
        with preserved_buffers(self.model):
            return self._evaluate(compute, snapshot=snapshot)

    def _outer_step(
        self, auxiliary: LossEvaluation, primary: LossEvaluation | None
    ) -> tuple[OuterResult, OuterProblem]:
        combined, a = sensitivities(self.combiner, auxiliary.values)
        problem = OuterProblem(self.parameters, auxiliary, combined, a, gamma=self.gamma, primary=primary)
        rows = rows_pay(auxiliary.parts) if self.estimator_name == "auto" else self.estimator_name == "per_task"
        problem.keep_rows = rows and problem.size <= ROWS_KEPT
        products = self._products(problem, self._scheme(problem))
        gradients = outer_gradient(
            self.combiner, auxiliary.values, products, gamma=self.gamma, direct_term=self.direct_term
        )
        result = self._apply(gradients, products)
        self.outer_steps += 1
        return result, problem

    def _products(self, problem: OuterProblem, direction: Direction) -> Tensor:
        if self._estimator is not None:
            return self._estimator(problem, direction)
        name, reason, products = choose(problem, direction, low_precision=self.autocast is not None)
        self.estimator_name, self._estimator = name, estimator(name)
        self._log(f"estimator: {name} ({reason})")
        return products

    def _apply(self, gradients: Sequence[Tensor | None], products: Tensor) -> OuterResult:
        assert self.outer_optimizer is not None
        trainable = [parameter for parameter in self.combiner.parameters() if parameter.requires_grad]
        present = [gradient for gradient in gradients if gradient is not None]
        size = torch.nn.utils.get_total_norm(present) if present else torch.zeros((), device=products.device)
        if not bool(torch.isfinite(size)) or not bool(torch.isfinite(products).all()):
            self._log("outer step left out: the hypergradient is not finite")
            return OuterResult(products, size, applied=False)
        for parameter, gradient in zip(trainable, gradients, strict=True):
            parameter.grad = gradient
        if self.outer_clip_norm is not None and present:
            torch.nn.utils.clip_grad_norm_(trainable, self.outer_clip_norm)
        self.outer_optimizer.step()
        self.outer_optimizer.zero_grad(set_to_none=True)
        return OuterResult(products, size, applied=True)

    def _inner_backward(self, evaluation: LossEvaluation, a: Tensor, problem: OuterProblem | None) -> None:
        """Add J^T a to ``.grad``: from the kept rows, or by one weighted backward."""
        if problem is not None and problem.rows is not None:
            for parameter, gradient in zip(self.parameters, problem.combine(a), strict=True):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
            return
        live = [(part, weight) for part, weight in zip(evaluation.parts, a, strict=True) if part.requires_grad]
        if not live:
            raise ValueError("no loss depends on a trainable parameter")
        torch.autograd.backward([part for part, _ in live], [weight.to(part) for part, weight in live])
