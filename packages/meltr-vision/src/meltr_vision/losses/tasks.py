"""The losses on one trunk: classification, mixup (Zhang et al. 2018), rotation (Gidaris et al. 2018), other labels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from meltr_vision.losses.draws import Draws
from meltr_vision.names import LABELS


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
        model: Maps named images to named logits, see `meltr_vision.model.classifier.Classifier`.
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
