"""Results of one step of the bilevel loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class OuterResult:
    """Result of an outer step; tensors stay on their device.

    Args:
        products: The gradient alignment g = J q, shape (T+1,). g_t > 0: a larger weight of task t lowers the primary
            objective now.
        gradient_norm: Norm of phi's gradient before clipping, shape ().
        finite: Whether the hypergradient was finite, shape (); otherwise the step was skipped.
        names: Names of the losses, primary first.
    """

    products: Tensor
    gradient_norm: Tensor
    finite: Tensor
    names: tuple[str, ...] = ()

    @property
    def applied(self) -> bool:
        """False if the step was skipped because the hypergradient was not finite; waits for the device."""
        return bool(self.finite)

    @property
    def alignment(self) -> dict[str, Tensor]:
        """The gradient alignment by the name of the loss, shape () each."""
        return _by_name(self.names, self.products)


@dataclass(frozen=True)
class StepResult:
    """Result of one call of `Bilevel.backward`; tensors stay on their device.

    Args:
        losses: l, shape (T+1,), detached: the mean over micro-batches and processes.
        combined: m(l), shape (), detached.
        sensitivities: The task weights a = dm/dl, shape (T+1,); the inner gradient is the sum of the task gradients
            with these weights.
        outer: The outer step taken before this inner gradient; None if there was none.
        names: Names of the losses, primary first.
    """

    losses: Tensor
    combined: Tensor
    sensitivities: Tensor
    outer: OuterResult | None = None
    names: tuple[str, ...] = ()

    @property
    def weights(self) -> dict[str, Tensor]:
        """The task weights by the name of the loss, shape () each: ``step.weights["rotation"]``."""
        return _by_name(self.names, self.sensitivities)

    @property
    def named_losses(self) -> dict[str, Tensor]:
        """The losses by name, shape () each: ``step.named_losses["rotation"]``."""
        return _by_name(self.names, self.losses)


def _by_name(names: Sequence[str], values: Tensor) -> dict[str, Tensor]:
    return dict(zip(names, values, strict=True))
