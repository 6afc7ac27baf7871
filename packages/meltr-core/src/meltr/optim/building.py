"""Optimisers and learning-rate schedules of the inner and the outer loop."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from meltr.optim.bert_adam import BertAdam
from meltr.shards import local
from meltr.specs import BilevelSpec, TrainSpec


def inner_optimizer(spec: TrainSpec, groups: Sequence[Mapping[str, Any]]) -> torch.optim.Optimizer:
    """Build the optimiser of w; every group keeps its ``lr_scale`` (1 if it has none)."""
    complete = [{"lr_scale": 1.0, "weight_decay": spec.weight_decay, **group} for group in groups]
    if spec.optimizer == "sgd":
        return torch.optim.SGD(
            complete, lr=spec.lr, momentum=spec.momentum, nesterov=spec.nesterov, fused=fused(complete)
        )
    if spec.optimizer == "bert_adam":
        return BertAdam(complete, spec.lr, betas=spec.betas, eps=spec.eps, max_grad_norm=spec.clip_tensor_norm)
    kind = torch.optim.Adam if spec.optimizer == "adam" else torch.optim.AdamW
    return kind(complete, lr=spec.lr, betas=spec.betas, eps=spec.eps, fused=fused(complete))


def outer_optimizer(spec: BilevelSpec, combiner: nn.Module) -> torch.optim.Optimizer:
    """Build the optimiser of phi: Adam (Algorithm 1; appendix of the paper) or AdamW."""
    kind = torch.optim.Adam if spec.outer_optimizer == "adam" else torch.optim.AdamW
    return kind(
        combiner.parameters(),
        lr=spec.outer_lr,
        betas=spec.outer_betas,
        weight_decay=spec.outer_weight_decay,
        fused=fused([{"params": list(combiner.parameters())}]),
    )


def fused(groups: Sequence[Mapping[str, Any]]) -> bool | None:
    """Return True if one kernel can update all parameters of an optimiser: all are whole and on a GPU; else None."""
    tensors = [parameter for group in groups for parameter in group["params"]]
    return all(each.is_cuda and each.is_floating_point() and local(each) is each for each in tensors) or None


def parameter_groups(model: nn.Module, groups: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """Return the parameter groups of a plugin, checked, or one group with every trainable parameter.

    Raises:
        ValueError: If a parameter is in two groups, or no group has a trainable parameter.
    """
    if groups is None:
        groups = [{"params": [p for p in model.parameters() if p.requires_grad]}]
    seen: set[int] = set()
    checked = []
    for group in groups:
        parameters = [p for p in group["params"] if p.requires_grad]
        if any(id(p) in seen for p in parameters):
            raise ValueError("a parameter is in two groups")
        seen.update(id(p) for p in parameters)
        if parameters:
            checked.append({**group, "params": parameters})
    if not checked:
        raise ValueError("there are no trainable parameters (all have requires_grad=False)")
    return checked


def decay_groups(
    model: nn.Module, *, spared: Sequence[str] | None = None, lr_scales: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Return parameter groups with their weight decay and learning rate, for an adapter's hook `parameter_groups`.

    Args:
        model: The backbone; frozen parameters are skipped.
        spared: Parameters whose name contains one of these strings get no weight decay; None: those with fewer than
            two dimensions, which are biases and norms.
        lr_scales: Maps a part of a name to the `lr_scale` of the parameters whose name contains it; the first match
            counts.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = next((scale for part, scale in (lr_scales or {}).items() if part in name), 1.0)
            free = parameter.dim() < 2 if spared is None else any(part in name for part in spared)
            groups.setdefault((scale, free), []).append(parameter)
    return [
        {"params": parameters, "lr_scale": scale, **({"weight_decay": 0.0} if free else {})}
        for (scale, free), parameters in groups.items()
    ]


def autocast_dtype(precision: str) -> torch.dtype | None:
    """Return the data type of autocast for ``train.precision``; None for ``fp32``."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)


def lr_factor(
    step: int,
    total: int,
    *,
    schedule: str,
    warmup: float = 0.0,
    milestones: Sequence[int] = (),
    decay: float = 0.1,
    counts: str = "nonzero",
) -> float:
    """Return the factor to multiply the peak learning rate with at one step.

    Args:
        step: 0-based step.
        total: Steps of the whole schedule.
        schedule: ``constant``, ``linear`` (to zero), ``cosine`` (to zero) or ``step``.
        warmup: Linear warm-up in steps (>= 1) or as a fraction of `total` (< 1).
        milestones: Steps at which the step schedule multiplies by `decay`.
        decay: Factor of the step schedule.
        counts: Which steps count as done: see `TrainSpec`.
    """
    done = step + 1 if counts == "after" else step
    warm = warmup if warmup >= 1 else warmup * total
    if done < warm:
        return (done + 1) / (math.floor(warm) + 1) if counts == "nonzero" else done / warm
    progress = (done - warm) / max(1.0, total - warm)
    if schedule == "linear":
        return max(0.0, 1.0 - progress)
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    if schedule == "step":
        return float(decay ** sum(done >= milestone for milestone in milestones))
    return 1.0


def inner_lr(spec: TrainSpec, step: int, *, total: int, steps_per_epoch: int) -> float:
    """Return the learning rate of w at one step.

    With `TrainSpec.schedule_restart` the schedule starts again after T = epochs x steps of an epoch. Counted before the
    update, it runs through 0, ..., T - 1. Counted after the update, it runs through 1, ..., T and then 0, ..., T, as in
    MELTR's released captioning code: every later pass takes T + 1 steps.

    Args:
        spec: Settings of the inner loop.
        step: 0-based step.
        total: Steps of the run.
        steps_per_epoch: Steps per epoch.
    """
    if spec.schedule_restart is not None:
        after = spec.schedule_counts == "after"
        total = spec.schedule_restart * steps_per_epoch + after
        step = (step + after) % total - after
    factor = lr_factor(
        step,
        total,
        schedule=spec.schedule,
        warmup=spec.warmup,
        milestones=[epoch * steps_per_epoch for epoch in spec.milestones],
        decay=spec.lr_decay,
        counts=spec.schedule_counts,
    )
    return spec.lr * factor


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group, scaled by its ``lr_scale``."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
