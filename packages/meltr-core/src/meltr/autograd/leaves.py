"""The leaves that losses reach: find them, differentiate without calling their hooks, and add to their gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from meltr.autograd.graph import nodes_of
from meltr.torch_private import gradient_hooks


def reached_leaves(losses: Iterable[Tensor]) -> list[Tensor]:
    """Return all leaves whose ``.grad`` a backward pass of these losses would fill, in any module or none.

    Args:
        losses: The losses with their graphs, 0-dim each.
    """
    found: dict[int, Tensor] = {}
    for loss in losses:
        if loss.requires_grad and loss.grad_fn is None:
            found[id(loss)] = loss
    for node in nodes_of(*losses):
        variable = getattr(node, "variable", None)
        if variable is not None:
            found[id(variable)] = variable
    return list(found.values())


def sees_every_pass(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a gradient hook of a leaf as one to call in every backward pass of an outer step, not once per step.

    Such a hook counts computations. It is not called when a finished gradient is added to ``.grad``.
    """
    hook.sees_every_pass = True  # type: ignore[attr-defined]
    return hook


@contextmanager
def gradients_kept(model: nn.Module) -> Iterator[None]:
    """Within this context, a backward pass of the losses themselves does not add to ``.grad`` of the parameters."""
    before = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in before:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in before:
            parameter.grad = gradient


@contextmanager
def hooks_withheld(leaves: Iterable[Tensor], *, marked: bool = False) -> Iterator[None]:
    """Within this context, gradient hooks of leaves are not called.

    An outer step differentiates the losses several times, but hooks (clipping, logging, an optimiser that steps in the
    backward pass) are meant for the inner gradient alone.

    Args:
        leaves: The leaves.
        marked: Withhold the hooks marked by `sees_every_pass`; False: withhold all others.
    """
    withheld: list[tuple[dict[int, Any], dict[int, Any]]] = []
    for leaf in leaves:
        for hooks in gradient_hooks(leaf):
            if any(hasattr(hook, "sees_every_pass") == marked for hook in hooks.values()):
                withheld.append((hooks, dict(hooks)))
                for key in [key for key, hook in hooks.items() if hasattr(hook, "sees_every_pass") == marked]:
                    del hooks[key]
    try:
        yield
    finally:
        for hooks, before in withheld:
            hooks.clear()
            hooks.update(before)


def deliver(leaves: Sequence[Tensor], gradient: Iterable[Tensor | None]) -> None:
    """Add a finished gradient to ``.grad`` as a backward pass does: through every leaf's own graph node, once.

    So gradient hooks, post-accumulation hooks and DistributedDataParallel's hooks see what they would see in a backward
    pass of the weighted sum.

    Args:
        leaves: Leaves that require gradients.
        gradient: One entry per leaf; None adds nothing.
    """
    pairs = [(leaf, part) for leaf, part in zip(leaves, gradient, strict=True) if part is not None]
    if not pairs:
        return
    targets = [leaf for leaf, _ in pairs]
    parts = [part for _, part in pairs]
    del pairs
    with torch.enable_grad(), hooks_withheld(targets, marked=True):
        end = _Finished.apply(parts, *targets)
        end.backward()


class _Finished(torch.autograd.Function):
    """The end of a graph whose backward pass returns gradients that are already computed."""

    @staticmethod
    def forward(ctx: Any, parts: list[Tensor], *leaves: Tensor) -> Tensor:
        ctx.parts = parts
        return torch.zeros((), device=leaves[0].device)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        parts: list[Tensor] = ctx.parts
        own = (None, *parts)
        parts.clear()  # so that autograd can reuse the tensors instead of copying them
        return own
