"""Base classes of combiners: modules that map the vector of task losses to one scalar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

Rows = Sequence[Sequence[Tensor | None]]
"""The rows of J: for each task, one gradient per parameter; None where the gradient is zero."""


class Combiner(nn.Module):
    """A rule m that combines the task losses into the loss that training minimises.

    Training needs only the task weights ``a = dm/dl`` from it; see `sensitivities`.

    Args:
        names: Names of the losses, primary first.
    """

    learned = False
    """True if the outer loop trains the combiner. Then m must be twice differentiable (no fused kernels)."""

    _pure: ClassVar[bool] = False
    """True in the body of a class that is always `capturable`. Subclasses do not inherit it."""

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

    @property
    def capturable(self) -> bool:
        """True if the combiner may be captured as a CUDA graph.

        Then m must depend on nothing but the losses and its parameters and buffers, must change none of them when it
        is called, draw no random numbers, and never wait for the device (``.item()``, ``if tensor:``).
        A subclass of a capturable combiner is not, unless it says so: it may do what a graph cannot.
        """
        return bool(vars(type(self)).get("_pure"))

    def settings(self) -> dict[str, object]:
        """Return the settings needed to rebuild the combiner; they are stored beside its weights."""
        return {}

    def prepare(self, losses: Tensor) -> None:
        """Prepare for training; called once with the losses of the first step, shape (T+1,)."""

    def end_epoch(self) -> None:
        """Called at the end of each epoch, after its last step."""


class Step(Protocol):
    """View of one inner step for a self-trained combiner; all values are averaged over the ranks."""

    @property
    def losses(self) -> Tensor:
        """The losses l of this step's batch before the step, shape (T+1,)."""
        ...

    def gradient_norms(self) -> Tensor:
        """Return each task's gradient norm over the scoped parameters, shape (T+1,); only before the step."""
        ...

    def losses_again(self) -> Tensor:
        """Return the losses of the same batch and random numbers at the current weights, shape (T+1,)."""
        ...


class SelfTrained(Combiner):
    """A combiner whose parameters follow its own rule at every step instead of the hypergradient.

    The engine passes the gradients that the rule returns to the outer optimiser.
    """

    sees_moved_weights = False
    """True if the rule needs the weights after the inner step (`Step.losses_again`)."""

    def own_gradients(self, step: Step) -> Sequence[Tensor | None]:
        """Return one gradient per trainable parameter, in order; None leaves that parameter unchanged.

        Args:
            step: The inner step, before w is updated, or after it if `sees_moved_weights`.
        """
        raise AssertionError(f"{type(self).__name__} must define own_gradients(step)")

    def after_update(self) -> None:
        """Called after the outer optimiser has updated the parameters, for example to normalise them."""


class GradientCombiner(Combiner):
    """A combiner that builds the inner gradient from the task gradients instead of the loss values."""

    def from_gradients(self, losses: Tensor, rows: Rows) -> tuple[list[Tensor | None], Tensor]:
        """Return the inner gradient, one entry per parameter, and the equivalent task weights a, shape (T+1,).

        Args:
            losses: l, shape (T+1,).
            rows: The gradient of every task, primary first.
        """
        raise AssertionError(f"{type(self).__name__} must define from_gradients(losses, rows)")


def sensitivities(combiner: nn.Module, losses: Tensor, *, create_graph: bool = False) -> tuple[Tensor, Tensor]:
    """Return m(l) and the task weights a = dm/dl (the sensitivities of Figures 3-5 of the paper).

    Args:
        combiner: Any module that maps a vector to a scalar.
        losses: Loss values l, shape (T+1,). Treated as constants: the backbone's graph is not used.
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
    """Return the given loss names, or ``("primary", "auxiliary_1", ...)`` if a number of losses is given.

    Raises:
        ValueError: If the number of losses is below 1.
    """
    if isinstance(losses, int):
        if losses < 1:
            raise ValueError(f"losses must be at least 1, got {losses}")
        return ("primary", *(f"auxiliary_{i}" for i in range(1, losses)))
    return tuple(losses)
