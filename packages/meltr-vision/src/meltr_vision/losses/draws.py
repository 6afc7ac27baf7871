"""The random numbers of a step: lambda and partners of mixup, and quarter turns.

All are drawn from one generator in a fixed order that depends on the losses of the run, not on those that are computed.
So a replay of some losses sees the same numbers.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from meltr_vision.model.classifier import ROTATIONS

PROPOSALS = 16
"""Candidates drawn at once for a gamma variate. Each is accepted with a probability above 0.95."""


@dataclass(frozen=True)
class Draws:
    """The random numbers of one step.

    Args:
        lam: lambda of mixup, 0-dim.
        permutation: Partner of each image, shape (B,).
        turns: Quarter turns, shape (B,) for one rotated copy of each image, or (4 B,) for all four.
    """

    lam: Tensor
    permutation: Tensor
    turns: Tensor


def draw(
    losses: Collection[str],
    size: int,
    *,
    alpha: float,
    all_rotations: bool,
    device: torch.device,
    generator: torch.Generator | None,
) -> Draws:
    """Draw the random numbers of a step, always in the same order and without a device synchronisation.

    Args:
        losses: All losses of the run, so that a replay of some of them sees the same numbers. Numbers that no loss
            needs are not drawn but neutral: lambda 1, every image its own partner, no turn.
        size: B, images in the batch.
        alpha: Parameter of Beta(alpha, alpha).
        all_rotations: True: make all four copies of each image instead of one random copy.
        device: Device of the numbers.
        generator: Source of randomness; None: torch's global one.
    """
    lam, permutation = torch.ones((), device=device), torch.arange(size, device=device)
    if "mixup" in losses:
        lam = draw_beta(alpha, device=device, generator=generator)
        permutation = torch.randperm(size, device=device, generator=generator)
    if all_rotations:
        turns = torch.arange(ROTATIONS, device=device).repeat_interleave(size)
    elif "rotation" in losses:
        turns = torch.randint(ROTATIONS, (size,), device=device, generator=generator)
    else:
        turns = torch.zeros(size, dtype=torch.int64, device=device)
    return Draws(lam, permutation, turns)


def draw_beta(
    alpha: float, *, device: torch.device, generator: torch.Generator | None, size: tuple[int, ...] = ()
) -> Tensor:
    """Draw from Beta(alpha, alpha) as G1 / (G1 + G2) with two gamma variates, in logarithms, so alpha may be tiny.

    The variates use Gamma(alpha) = Gamma(alpha + 1) U^(1/alpha). Gamma(alpha + 1) is drawn as in Marsaglia and Tsang
    2000: with d = alpha + 2/3, c = 1 / sqrt(9 d), x normal and v = (1 + c x)^3, accept d v if
    log u < x^2 / 2 + d - d v + d log v. Sixteen candidates are drawn at once, to avoid a device synchronisation; the
    probability that all are rejected is below 1e-20. torch.distributions.Beta accepts no generator.

    Args:
        alpha: Parameter, positive.
        device: Device of the result.
        generator: Source of randomness; None: torch's global one.
        size: Shape of the result.

    Returns:
        Values in [0, 1], float32.
    """
    shape = (*size, 2, PROPOSALS)
    d = alpha + 2 / 3
    x = torch.randn(shape, device=device, generator=generator)
    log_u = -torch.empty(shape, device=device).exponential_(generator=generator)
    boost = -torch.empty(shape[:-1], device=device).exponential_(generator=generator) / alpha
    base = (1 + x / (9 * d) ** 0.5).clamp_min(0)
    v = base**3
    accepted = (base > 0) & (log_u < x**2 / 2 + d - d * v + d * v.log())
    first = accepted.to(torch.int8).argmax(dim=-1, keepdim=True)
    log_gamma = (d * v).gather(-1, first).squeeze(-1).log() + boost
    return torch.sigmoid(log_gamma[..., 0] - log_gamma[..., 1])
