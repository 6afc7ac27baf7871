"""What one step of the bilevel loop found."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class OuterResult:
    """What an outer step found; tensors stay on their device.

    Args:
        products: g = J q, the gradient alignment, shape (T+1,): g_t > 0 says that a larger weight of task t lowers the
            primary objective now.
        gradient_norm: Norm of phi's gradient before clipping, shape ().
        applied: False if the step was skipped because the hypergradient was not finite.
    """

    products: Tensor
    gradient_norm: Tensor
    applied: bool


@dataclass(frozen=True)
class StepResult:
    """What one call of `Bilevel.backward` found; tensors stay on their device.

    Args:
        losses: l, shape (T+1,), detached; the mean over micro-batches and processes.
        combined: m(l), shape (), detached.
        sensitivities: The task weights a = dm/dl, shape (T+1,), with which the inner gradient is the sum of task
            gradients.
        outer: The outer step taken before this inner gradient, if there was one.
    """

    losses: Tensor
    combined: Tensor
    sensitivities: Tensor
    outer: OuterResult | None = None
