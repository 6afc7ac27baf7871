"""g = J q by differentiating the backward pass, as the released code does; used as a reference."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from meltr.autograd.leaves import hooks_withheld
from meltr.autograd.vectors import Direction
from meltr.hypergradients.estimators.base import Estimator
from meltr.hypergradients.loss_values import BatchValues
from meltr.hypergradients.passes import Passes
from meltr.hypergradients.problem import OuterProblem


class DoubleBackward(Estimator):
    """g = J q as the derivative of <J^T a, q> with respect to a.

    Exact, and independent of the other ways. Cost: a backward pass that builds a graph, and its transpose; memory: both
    graphs. Does not support fused attention, torch.compile and FSDP2; the losses must be evaluated with math attention.
    """

    name: ClassVar[str] = "double_backward"
    needs_whole_weights: ClassVar[bool] = True

    @property
    def needs_second_derivative(self) -> bool:
        """True."""
        return True

    def most(self, size: int) -> Passes:
        """Return the bound of a backward pass that builds a graph, and of its transpose."""
        return Passes(forward=0, backward=4)

    def __call__(self, problem: OuterProblem, direction: Direction) -> Tensor:
        """Return g = J q, shape (T+1,), float64."""
        own = []
        for batch in problem.auxiliary.micro_batches():
            own.append(_of_batch(problem, direction, batch))
            del batch  # and its graph, before the next one is built
        return problem.auxiliary.setup.sharing.mean(torch.stack(own).mean(0))


def _of_batch(problem: OuterProblem, direction: Direction, batch: BatchValues) -> Tensor:
    weights = torch.ones_like(batch.local_values).requires_grad_()
    with torch.enable_grad(), hooks_withheld(problem.parameters):
        combined = (weights * torch.stack([part.to(weights) for part in batch.parts])).sum()
        gradients = torch.autograd.grad(combined, problem.parameters, create_graph=True, allow_unused=True)
        pairs = [(u, q) for u, q in zip(gradients, direction, strict=True) if u is not None and q is not None]
        if not pairs:
            return torch.zeros_like(weights, dtype=torch.float64)
        inner = torch.stack([_inner(u, q, weights) for u, q in pairs]).sum()
        (products,) = torch.autograd.grad(inner, weights, retain_graph=True)
    return products.double()


def _inner(u: Tensor, q: Tensor, like: Tensor) -> Tensor:
    """Return the inner product of two parts in the type of `like`; a complex number counts as two real ones."""
    if u.is_complex():
        u, q = torch.view_as_real(u.resolve_conj()), torch.view_as_real(q.to(u).resolve_conj())
    return (u.to(like) * q.to(like)).sum()
