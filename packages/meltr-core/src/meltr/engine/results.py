"""What one step of the bilevel loop found."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


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
        losses: l, shape (T+1,), detached; the mean over pieces and processes.
        combined: m(l), shape (), detached.
        sensitivities: a = dm/dl, shape (T+1,): the weights of the inner gradient.
        outer: The outer step taken before this inner gradient, if there was one.
    """

    losses: Tensor
    combined: Tensor
    sensitivities: Tensor
    outer: OuterResult | None = None
