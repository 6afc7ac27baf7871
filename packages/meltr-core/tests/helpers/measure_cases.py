"""Backbones in one file for the tests of measuring: the toy of `toy_backbone.py`, sound or spoilt in one way."""

from __future__ import annotations

from pathlib import Path

import pytest

from meltr.verify.timing import Timing
from meltr.verify.variants import schemes
from places import TOY

CHOICE = ["--backbone", "toy", "--task", "classification", "--dataset", "rings"]
SMALL = ["--set", "width=16", "--set", "heads=2", "--set", "feedforward=16", "--device", "cpu", "--batch-size", "32"]

NOISE = "noise = torch.randn(points.shape, generator=context.generator, device=points.device)"
HIDDEN = "hidden = model(points)\n"

SPOILT = {
    # Draws from a state of its own: a second evaluation is another function.
    "own_state": (NOISE, "noise = torch.randn(points.shape, generator=OWN)"),
    # Changes a parameter while it computes losses.
    "moves_weights": (HIDDEN, HIDDEN + "        model.classify.bias.data.add_(1e-3)\n"),
    # Draws more for more losses, before the draws of the primary one.
    "draws_by_losses": (
        HIDDEN,
        "torch.randn(len(context.losses), generator=context.generator)\n"
        "        points = points + 0.1 * torch.randn(points.shape, generator=context.generator)\n        " + HIDDEN,
    ),
    # An operation without a forward-mode derivative.
    "no_forward_mode": (
        HIDDEN,
        HIDDEN + "        hidden = hidden + 0.1 * torch.cdist(hidden, torch.ones(32, 32), p=1.0)\n",
    ),
    # An operation that cannot be differentiated in forward mode, nor twice, and does not say so.
    "once_only": (HIDDEN, HIDDEN + "        hidden = Once.apply(hidden)\n"),
    # An operation whose backward is wrong by a factor.
    "wrong_backward": (HIDDEN, HIDDEN + "        hidden = Wrong.apply(hidden)\n"),
}

_HELPERS = """

OWN = torch.Generator().manual_seed(0)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


class Wrong(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return 1.5 * gradient
"""


def only_agreement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``meltr verify`` look at one scheme of eight, and measure no step, in tests of what decides its answer."""
    monkeypatch.setattr("meltr.verify.verification.schemes", lambda registry: schemes(registry)[:1])
    free = {"plain": (Timing((1.0,), (1.0,)), None)}
    monkeypatch.setattr("meltr.verify.verification._prices", lambda run, steppers, turns: free)


def spoilt(folder: Path, kind: str) -> Path:
    """Write the toy backbone, spoilt in one way, into a file and return its path."""
    old, new = SPOILT[kind]
    text = TOY.read_text()
    assert text.count(old) == 1
    file = folder / f"{kind}_{folder.name}.py".replace("-", "_")
    file.write_text(text.replace(old, new) + _HELPERS)
    return file
