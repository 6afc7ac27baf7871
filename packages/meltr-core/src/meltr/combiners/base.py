"""What every combiner is: a module that maps the vector of task losses to one scalar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

Rows = Sequence[Sequence[Tensor | None]]
"""The rows of J: for every task one gradient a parameter, None where it is zero."""


class Combiner(nn.Module):
    """A rule m that turns the task losses into the one loss that is descended.

    The only thing training needs from it is ``a = dm/dl``, how strongly each task pulls; see `sensitivities`.

    Args:
        names: Names of the losses, primary first.
    """

    learned = False
    """True if the outer loop trains it: then m must be twice differentiable (no fused kernels)."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        if not names:
            raise ValueError("a combiner needs at least one loss name")
        if len(set(names)) != len(names):
            raise ValueError(f"loss names must differ, got {list(names)}")
        self.names = tuple(names)

    def forward(self, losses: Tensor) -> Tensor:
        """Map losses of shape (T+1,) to a scalar of shape ()."""
        raise AssertionError(f"{type(self).__name__} must define forward(losses)")

    def settings(self) -> dict[str, object]:
        """Return what is needed to build the combiner again; stored beside its weights."""
        return {}

    def prepare(self, losses: Tensor) -> None:
        """Get ready for training; called once with the losses of the first step, shape (T+1,)."""

    def end_epoch(self) -> None:
        """Take note that an epoch is over; called after its last step."""


class Step(Protocol):
    """What a rule of its own sees of one inner step; everything is averaged over the ranks."""

    @property
    def losses(self) -> Tensor:
        """The losses l of this step's batch before the step, shape (T+1,)."""
        ...

    def gradient_norms(self) -> Tensor:
        """Return the norm of every task's gradient by the scoped parameters, shape (T+1,); before the step only."""
        ...

    def losses_again(self) -> Tensor:
        """Return the losses of the same batch, same random numbers, at the weights of now, shape (T+1,)."""
        ...


class SelfTrained(Combiner):
    """A combiner whose parameters follow a rule of their own at every step, not the hypergradient.

    The engine hands the gradients that the rule returns to the outer optimiser.
    """

    sees_moved_weights = False
    """True if the rule wants to see the weights after the inner step (`Step.losses_again`)."""

    def own_gradients(self, step: Step) -> Sequence[Tensor | None]:
        """Return a gradient for each trainable parameter, in their order; None leaves one alone.

        Args:
            step: The inner step: before w moved, or after if `sees_moved_weights`.
        """
        raise AssertionError(f"{type(self).__name__} must define own_gradients(step)")

    def after_update(self) -> None:
        """Called when the outer optimiser has moved the parameters (to normalise them, say)."""


class GradientCombiner(Combiner):
    """A combiner that makes the inner gradient from the task gradients themselves, not from the loss values."""

    def from_gradients(self, losses: Tensor, rows: Rows) -> tuple[list[Tensor | None], Tensor]:
        """Return the inner gradient, one entry a parameter, and the weights a of shape (T+1,) that it amounts to.

        Args:
            losses: l, shape (T+1,).
            rows: The gradient of every task, primary first.
        """
        raise AssertionError(f"{type(self).__name__} must define from_gradients(losses, rows)")


def sensitivities(combiner: nn.Module, losses: Tensor, *, create_graph: bool = False) -> tuple[Tensor, Tensor]:
    """Return m(l) and a = dm/dl, the sensitivities of Figures 3-5 of the paper.

    Args:
        combiner: Any module that maps a vector to a scalar.
        losses: Loss values l, shape (T+1,). Used as constants: no graph of the backbone is touched.
        create_graph: Keep the graph of `a` with respect to the combiner's parameters.

    Returns:
        m(l) of shape () and a of shape (T+1,), both in float32 at least.
    """
    with torch.enable_grad(), torch.autocast(device_type=losses.device.type, enabled=False):
        leaf = losses.detach()
        if leaf.dtype in (torch.float16, torch.bfloat16):
            leaf = leaf.float()
        leaf = leaf.requires_grad_()
        combined = combiner(leaf).reshape(())
        (a,) = torch.autograd.grad(combined, leaf, create_graph=create_graph, allow_unused=True, materialize_grads=True)
    return (combined, a) if create_graph else (combined.detach(), a)


def as_names(losses: int | Sequence[str]) -> tuple[str, ...]:
    """Return loss names: those given, or ``("primary", "auxiliary_1", ...)`` for a number of losses.

    Raises:
        ValueError: If there is no loss.
    """
    if isinstance(losses, int):
        if losses < 1:
            raise ValueError(f"losses must be at least 1, got {losses}")
        return ("primary", *(f"auxiliary_{i}" for i in range(1, losses)))
    return tuple(losses)
