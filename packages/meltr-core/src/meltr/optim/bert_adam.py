"""BertAdam: Adam as in the first PyTorch code of BERT, and in MELTR's released captioning code."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from meltr.shards import local
from meltr.torch_private import (
    add_each,
    add_products_each,
    add_quotients_each,
    interpolate_each,
    roots_of_each,
    scale_each,
)


class BertAdam(torch.optim.Optimizer):
    r"""Adam without bias correction, with decoupled weight decay, each tensor's gradient clipped on its own.

    For a parameter w with gradient g, M = `max_grad_norm` and (b1, b2) = `betas`:

        g <- g min(1, M / (|g| + 1e-6)),    m <- b1 m + (1 - b1) g,    v <- b2 v + (1 - b2) g^2,
        w <- w - lr (m / (sqrt(v) + eps) + weight_decay w).

    Without the correction the first step is (1 - b1) / sqrt(1 - b2) times Adam's: 3.2 times at the usual betas. The
    decay is multiplied by `lr` alone, so it follows the schedule. The public code (``optimization.py`` of
    pytorch-pretrained-BERT) includes the schedule; here the caller sets `lr`, as for every optimiser of torch.

    Weights sharded by ``fully_shard`` are clipped by the norms of the whole tensors: one small all-reduce per step.

    Args:
        params: Parameters or groups.
        lr: Learning rate.
        betas: Decay rates of the two moments.
        eps: Added to sqrt(v).
        weight_decay: Decay, relative to `lr`.
        max_grad_norm: Norm to which each tensor's gradient is clipped; None: no clipping.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        max_grad_norm: float | None = 1.0,
    ) -> None:
        if lr < 0 or eps < 0 or weight_decay < 0:
            raise ValueError(f"lr, eps and weight_decay must not be negative, got {lr}, {eps}, {weight_decay}")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be at least 0 and below 1, got {betas}")
        if max_grad_norm is not None and max_grad_norm <= 0:
            raise ValueError(f"max_grad_norm must be positive or None, got {max_grad_norm}")
        defaults = {
            "lr": lr,
            "betas": tuple(betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "max_grad_norm": max_grad_norm,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient; gradients are not changed.

        Args:
            closure: Evaluates the loss again and returns it.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._update(parameters, group)
        return loss

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                for moment in ("exp_avg", "exp_avg_sq"):
                    self.state[parameter][moment] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        weights = [local(parameter) for parameter in parameters]
        mean = [local(self.state[parameter]["exp_avg"]) for parameter in parameters]
        square = [local(self.state[parameter]["exp_avg_sq"]) for parameter in parameters]
        gradients, (beta1, beta2) = _clipped(parameters, group["max_grad_norm"]), group["betas"]
        interpolate_each(mean, gradients, 1 - beta1)
        scale_each(square, beta2)
        add_products_each(square, gradients, gradients, 1 - beta2)
        del gradients
        below = roots_of_each(square)
        add_each(below, group["eps"])
        if group["weight_decay"]:
            scale_each(weights, 1 - group["lr"] * group["weight_decay"])
        add_quotients_each(weights, mean, below, -group["lr"])


def _clipped(parameters: list[Tensor], limit: float | None) -> list[Tensor]:
    """Return this process' parts of the gradients, each clipped to the norm `limit`."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    own = [local(gradient) for gradient in gradients]
    if limit is None:
        return own
    factors = (limit / (_norms(gradients) + 1e-6)).clamp(max=1.0)
    return [gradient * factor.to(gradient) for gradient, factor in zip(own, factors.unbind(), strict=True)]


def _norms(gradients: list[Tensor]) -> Tensor:
    """Return the norm of each gradient, shape (n,): that of the whole tensor, even if this process holds a shard."""
    dtype = functools.reduce(torch.promote_types, (gradient.dtype for gradient in gradients), torch.float32)
    norms = torch.stack([torch.linalg.vector_norm(local(gradient), dtype=dtype) for gradient in gradients])
    layouts: dict[Any, list[int]] = {}
    for number, gradient in enumerate(gradients):
        if hasattr(gradient, "placements"):
            cut = tuple(placement.is_shard() for placement in gradient.placements)
            layouts.setdefault((gradient.device_mesh, cut), []).append(number)  # type: ignore[attr-defined]
    for (mesh, cut), numbers in layouts.items():
        norms[numbers] = _over_shards(norms[numbers], mesh, cut)
    return norms


def _over_shards(norms: Tensor, mesh: Any, cut: tuple[bool, ...]) -> Tensor:
    """Return the norms of whole tensors, shape (n,), from those of shards; `cut`: which mesh dimensions shard them."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    placements = [Partial() if shard else Replicate() for shard in cut]
    return DTensor.from_local(norms.square(), mesh, placements).full_tensor().sqrt()
