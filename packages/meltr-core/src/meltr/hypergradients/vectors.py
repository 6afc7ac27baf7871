"""Vectors in parameter space: one tensor a parameter, None where it is zero."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from meltr.hypergradients.replay import unchanged_versions

Direction = list[Tensor | None]
"""A vector in parameter space: one tensor a parameter, None where it is zero."""


def add(one: Direction, other: Direction, *, alpha: float = 1.0) -> Direction:
    """Return one + alpha * other."""
    return [
        a if b is None else b * alpha if a is None else torch.add(a, b, alpha=alpha)
        for a, b in zip(one, other, strict=True)
    ]


def scale(direction: Direction, factor: float | Tensor) -> Direction:
    """Return factor * direction."""
    return [None if part is None else part * factor for part in direction]


def weighted_sum(weights: Tensor, directions: Sequence[Direction]) -> Direction:
    """Return sum_t weights[t] * directions[t], with no memory but the result's.

    Args:
        weights: Shape (n,).
        directions: n directions.
    """
    total = scale(directions[0], weights[0])
    for weight, direction in zip(weights[1:], directions[1:], strict=True):
        for place, part in enumerate(direction):
            if part is not None:
                so_far = total[place]
                total[place] = part * weight if so_far is None else so_far.addcmul_(part, weight.to(part.dtype))
    return total


def accumulate(parameters: Sequence[Tensor], gradient: Direction) -> None:
    """Add a gradient to ``.grad``."""
    for parameter, part in zip(parameters, gradient, strict=True):
        if part is not None:
            parameter.grad = part if parameter.grad is None else parameter.grad + part


def dot(one: Direction, other: Direction) -> Tensor:
    """Return the inner product of two directions in float64, shape (); of what this process holds of them."""
    pairs = [(local(a), local(b)) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    if not pairs:
        return torch.zeros((), dtype=torch.float64)
    products = [torch.sum(a.flatten() * b.flatten(), dtype=torch.float64) for a, b in pairs]
    return torch.stack([product.to(products[0].device) for product in products]).sum()


def local(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor: the shard of a DTensor, otherwise the tensor."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part


@contextmanager
def displaced(
    parameters: Sequence[Tensor],
    direction: Direction,
    moved: Callable[[], None] = lambda: None,
    *,
    overwrite: bool = False,
) -> Iterator[Callable[[float], None]]:
    """Move the weights along a direction, in place; afterwards they are back bit by bit, also when something fails.

    Yields a function of e, not 0, that puts the weights at w + e * direction. Nobody sees the move but who evaluates
    inside: autograd's version counters stay, so that a graph made before can still be differentiated.

    The displaced weights and w change places with the direction: while the weights are away, its memory holds w, and
    w + e' * direction is found from w + e * direction by extending the way from w. Of several e the largest first: the
    rounding of w + e * direction is then the smallest in proportion.

    Extra memory: a copy of the direction; nothing with `overwrite`.

    Args:
        parameters: The weights w.
        direction: One entry a parameter.
        moved: Called after every move (to throw away gathered copies of sharded weights).
        overwrite: Leave anything in the memory of `direction`, instead of copying it.
    """
    pairs = [(local(p).detach(), local(q)) for p, q in zip(parameters, direction, strict=True) if q is not None]
    weights = [p for p, _ in pairs]
    other = _writable(pairs) if overwrite else [torch.empty_like(p).copy_(q) for p, q in pairs]
    at = 0.0

    @torch.no_grad()
    def move(e: float) -> None:
        nonlocal at
        if e == 0:
            raise ValueError("a displacement of 0 forgets the direction")
        if at == 0:
            at = e
            for weight, q in zip(weights, other, strict=True):
                away = torch.add(weight, q, alpha=e)
                q.copy_(weight)
                weight.copy_(away)
        elif weights:
            torch._foreach_sub_(weights, other)
            torch._foreach_mul_(weights, e / at)
            torch._foreach_add_(weights, other)
            at = e
        torch.clear_autocast_cache()  # an autocast context around the training step keeps copies of the weights
        moved()

    with unchanged_versions([*weights, *(p for p in parameters if p.numel())]):
        try:
            yield move
        finally:
            if weights and at != 0:
                with torch.no_grad():
                    torch._foreach_copy_(weights, other)
            torch.clear_autocast_cache()
            moved()


def _writable(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Return each q as a tensor like its p; a copy only where its memory is not its own (gradients may be expanded)."""
    owners: set[int] = set()
    own = []
    for p, q in pairs:
        alone = q.dtype == p.dtype and q.stride() == p.stride() and q.untyped_storage().data_ptr() not in owners
        owners.add(q.untyped_storage().data_ptr())
        own.append(q if alone else torch.empty_like(p).copy_(q))
    return own
