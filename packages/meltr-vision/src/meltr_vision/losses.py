"""The losses on one trunk: classification, mixup (Zhang et al. 2018), rotation (Gidaris et al. 2018), other labels."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from meltr_vision.model import LABELS, ROTATIONS

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


def mix(images: Tensor, lam: Tensor, permutation: Tensor) -> Tensor:
    """Return lambda x + (1 - lambda) x_pi, shape (B, C, H, W)."""
    return lam * images + (1 - lam) * images[permutation]


def rotate(images: Tensor, turns: Tensor) -> Tensor:
    """Rotate image i counter-clockwise by ``turns[i]`` quarter turns, exactly (as ``torch.rot90`` does).

    Args:
        images: (B, C, S, S), square.
        turns: (B,), 0 to 3.
    """
    turns = turns.view(-1, 1, 1, 1)
    once = torch.where(turns % 2 == 1, images.transpose(2, 3).flip(2), images)
    return torch.where(turns >= 2, once.flip(2, 3), once)


def task_losses(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    wanted: tuple[str, ...],
    draws: Draws,
    others: Tensor | None = None,
) -> dict[str, Tensor]:
    """Compute the losses named in `wanted`, each 0-dim float32, with one call of `model`.

    - classification: CE(cls(f(x)), y).
    - mixup: lambda CE(cls(f(x~)), y) + (1 - lambda) CE(cls(f(x~)), y_pi) with x~ = lambda x + (1 - lambda) x_pi
      (Zhang et al. 2018).
    - rotation: CE(rot(f(rotate(x, r))), r), for one r per image or all four (Gidaris et al. 2018).
    - coarse, fine: CE(other(f(x)), y') with the other labels y' of the images.

    Args:
        model: Maps named images to named logits, see `meltr_vision.model.Classifier`.
        images: (B, C, S, S), normalised.
        labels: (B,), int64.
        wanted: Names of the losses.
        draws: Random numbers of the step.
        others: y', (B,), int64; needed for ``coarse`` and ``fine``.
    """
    makers: dict[str, Callable[[], Tensor]] = {
        "classification": lambda: images,
        "mixup": lambda: mix(images, draws.lam, draws.permutation),
        "rotation": lambda: rotate(images.repeat(len(draws.turns) // len(images), 1, 1, 1), draws.turns),
        **{name: lambda: images for name in LABELS},
    }
    logits = {name: each.float() for name, each in model({name: makers[name]() for name in wanted}).items()}
    losses = {}
    for name, each in logits.items():
        if name == "rotation":
            losses[name] = F.cross_entropy(each, draws.turns)
        elif name == "mixup":
            own, partner = F.cross_entropy(each, labels), F.cross_entropy(each, labels[draws.permutation])
            losses[name] = draws.lam * own + (1 - draws.lam) * partner
        elif name in LABELS:
            assert others is not None, f"the loss {name!r} needs the other labels"
            losses[name] = F.cross_entropy(each, others)
        else:
            losses[name] = F.cross_entropy(each, labels)
    return losses
