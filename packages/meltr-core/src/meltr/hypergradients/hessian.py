"""Products of directions with the Hessian of the combined loss, H = grad_w^2 m(l(w))."""

from __future__ import annotations

from typing import Literal

import torch
from torch import autograd

from meltr.autograd.leaves import hooks_withheld
from meltr.autograd.vectors import Direction, add, scale
from meltr.errors import UserError
from meltr.hypergradients.loss_values import BatchValues, LossValues
from meltr.hypergradients.problem import OuterProblem

HessianKind = Literal["difference", "double_backward"]
"""How Hessian-vector products are computed; see `hessian_product`."""

DISPLACEMENT = 1e-4
"""Length ||e p|| of the displacement in a difference of gradients."""


def hessian_product(
    problem: OuterProblem, direction: Direction, *, by: HessianKind, losses: LossValues | None = None
) -> Direction:
    """Return H p, computed in one of two ways.

    ``difference``: (u(w + e p) - u(w - e p)) / (2 e) with u = J^T a, where J and a are both taken at the displaced
    weights. Cost: two forward and two backward passes in full float32; memory: two gradients. Error: O(e^2), plus
    rounding error over e. In a network with kinks (ReLU) the difference includes the jumps of the gradient between the
    two points, which a second derivative does not see, so the two ways then measure different things.

    ``double_backward``: the derivative of <u, p>; exact. Cost: one backward pass per outer step that builds a graph,
    and the transpose of that graph for every product. Needs attention on the math kernel, one process and one
    micro-batch.

    Args:
        problem: The outer problem.
        direction: p, one entry per parameter.
        by: ``difference`` or ``double_backward``.
        losses: Losses on an independent batch; None: those of the problem.

    Raises:
        UserError: If the chosen way cannot give a correct result here.
    """
    at = problem.auxiliary if losses is None else losses
    if by == "double_backward":
        return _by_double_backward(problem, direction, at)
    problem.require_precision("hessian=difference", "hessian=double_backward")
    length = problem.norm(direction)
    if length == 0.0:
        return [None] * len(problem.parameters)
    e = DISPLACEMENT / length
    with problem.displaced(direction) as move:
        move(e)
        plus = _unified_gradient_now(problem, at)
        move(-e)
        minus = _unified_gradient_now(problem, at)
    return scale(add(plus, minus, alpha=-1.0), 1 / (2 * e))


def _unified_gradient_now(problem: OuterProblem, at: LossValues) -> Direction:
    fresh = at.run(graph=True, precise=True)
    _, a = problem.sensitivities_at(fresh.values)
    return fresh.vjp(list(a), problem.parameters)


def _by_double_backward(problem: OuterProblem, direction: Direction, at: LossValues) -> Direction:
    if not isinstance(at, BatchValues) or not at.setup.sharing.one_process:
        raise UserError(
            "hessian=double_backward needs one process and no gradient accumulation: the combiner sees the mean over "
            "micro-batches or processes, and a second-order graph covers only one of them.",
            "Use --set hessian=difference.",
        )
    gradients = problem.unified_gradient_with_graph(at)
    known = [
        (u, torch.zeros_like(u) if p is None else p.to(u))
        for u, p in zip(gradients, direction, strict=True)
        if u is not None and u.requires_grad
    ]
    if not known:
        return [None] * len(problem.parameters)
    outputs, seeds = [u for u, _ in known], [p for _, p in known]
    with hooks_withheld(problem.parameters):
        return list(autograd.grad(outputs, problem.parameters, seeds, retain_graph=True, allow_unused=True))
