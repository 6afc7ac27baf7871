"""Hypergradients written out in float64 with whole Jacobians and Hessians: nothing here comes from the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel


class _Caller(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute):
        return compute()


class Dense:
    """The losses of one batch as a function of a flat w, and what the papers compute from them.

    Args:
        model: The backbone, float64.
        m: The combiner.
        compute: Returns the losses.
        gamma: Weight of the regulariser.
        parameters: The coordinates of w; None: all trainable ones.
        start: State of torch's generator in which every evaluation starts; None: seeded with 7.
        primary: The primary loss on another batch, drawn after the losses.
    """

    def __init__(
        self,
        model: nn.Module,
        m: nn.Module,
        compute: Callable | None = None,
        *,
        gamma: float = 0.0,
        parameters: Sequence[Tensor] | None = None,
        start: Tensor | None = None,
        primary: Callable | None = None,
    ) -> None:
        self.caller, self.m, self.gamma = _Caller(model), m, gamma
        self.start = torch.Generator().manual_seed(7).get_state() if start is None else start
        self.compute = model.losses if compute is None else compute
        self.primary = primary
        wanted = {id(p) for p in (model.parameters() if parameters is None else parameters)}
        self.chosen = {name: p for name, p in self.caller.named_parameters() if p.requires_grad and id(p) in wanted}
        self.w = torch.cat([p.detach().flatten() for p in self.chosen.values()])

    def _call(self, w: Tensor, compute: Callable) -> Tensor:
        sizes = [p.numel() for p in self.chosen.values()]
        values = {name: part.view_as(p) for (name, p), part in zip(self.chosen.items(), w.split(sizes), strict=True)}
        buffers = {name: buffer.clone() for name, buffer in self.caller.named_buffers()}
        with sdpa_kernel(SDPBackend.MATH):
            losses = functional_call(self.caller, values | buffers, (compute,))
        losses = list(losses.values()) if isinstance(losses, dict) else losses
        return losses.reshape(-1) if isinstance(losses, Tensor) else torch.stack(list(losses))

    def losses(self, w: Tensor) -> Tensor:
        """l(w)."""
        torch.set_rng_state(self.start)
        return self._call(w, self.compute)

    def unified(self, w: Tensor) -> Tensor:
        """m(l(w))."""
        return self.m(self.losses(w))

    def primary_objective(self, w: Tensor) -> Tensor:
        """L_pri(w, phi) of eq. 6."""
        losses = self.losses(w)
        first = losses[0] if self.primary is None else self._call(w, self.primary)[0]
        return first + self.gamma * (self.m(losses) - losses.sum()).abs()

    def j(self) -> Tensor:
        return jacobian(self.losses, self.w)

    def h(self) -> Tensor:
        return hessian(self.unified, self.w)

    def u(self) -> Tensor:
        return jacobian(self.unified, self.w)

    def v(self, w: Tensor | None = None) -> Tensor:
        return jacobian(self.primary_objective, self.w if w is None else w)

    def phi_gradient(self, q: Tensor, *, direct_term: bool = False) -> Tensor:
        """-grad_phi <grad_w m(l(w)), q>, with the graph of the whole model, and the direct term at w."""
        w = self.w.clone().requires_grad_()
        (u,) = torch.autograd.grad(self.unified(w), w, create_graph=True)
        objective = -(u * q).sum()
        if direct_term:
            losses = self.losses(self.w)
            objective = objective + self.gamma * (self.m(losses) - losses.sum()).abs()
        return self._by_phi(objective)

    def look_ahead_gradient(self, rate: Tensor | float, *, direct_term: bool) -> Tensor:
        """d/dphi of L_pri(w - rate * u(phi), phi): through the step; through phi itself too with the direct term."""
        w = self.w.clone().requires_grad_()
        (u,) = torch.autograd.grad(self.unified(w), w, create_graph=True)
        ahead = w - rate * u
        if direct_term:
            return self._by_phi(self.primary_objective(ahead))
        slope = jacobian(self.primary_objective, ahead.detach())
        return self._by_phi((ahead * slope).sum())

    def _by_phi(self, objective: Tensor) -> Tensor:
        phi = list(self.m.parameters())
        found = torch.autograd.grad(objective, phi, allow_unused=True)
        return torch.cat([g.flatten() for g in found if g is not None])


def series(h: Tensor | Sequence[Tensor], v: Tensor, step: float, terms: int) -> Tensor:
    """step * sum_{j=0..terms} of v times j factors (I - step H), the first of `h` applied first."""
    factors = [h] * terms if isinstance(h, Tensor) else list(h)[:terms]
    one = torch.eye(len(v), dtype=v.dtype)
    total, product = v.clone(), one
    for factor in factors:
        product = (one - step * factor) @ product
        total = total + product @ v
    return step * total


def galerkin(h: Tensor, v: Tensor, order: int) -> Tensor:
    """The q in span(v, Hv, ..., H^(order-1) v) with residual v - H q orthogonal to it: what CG's iterates are."""
    basis = [v / v.norm()]
    for _ in range(order - 1):
        following = h @ basis[-1]
        for _ in range(2):  # twice: orthogonal to rounding
            for each in basis:
                following = following - (following @ each) * each
        basis.append(following / following.norm())
    k = torch.stack(basis, 1)
    return k @ torch.linalg.solve(k.T @ h @ k, k.T @ v)
