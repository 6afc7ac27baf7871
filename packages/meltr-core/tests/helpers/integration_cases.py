"""A small model with three losses, and the plain training loop that the integrations have to agree with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from meltr import Bilevel, LossTransformer, Setup

NAMES = ("label", "size", "shift")


class Net(nn.Module):
    """A classifier with BatchNorm, whose running statistics a second evaluation must not change."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 8), nn.Tanh(),
            nn.Linear(8, 3),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, shape (batch, 3)."""
        return self.layers(x)


def net(dropout: float = 0.0) -> Net:
    torch.manual_seed(0)
    return Net(dropout)


def losses(model: nn.Module, x: Tensor, y: Tensor, count: int = 3) -> dict[str, Tensor]:
    """Return the losses, in another order than the combiner's."""
    logits = model(x).float()
    found = {
        "size": logits.square().mean(),
        "label": F.cross_entropy(logits, y),
        "shift": F.mse_loss(logits, torch.ones_like(logits)),
    }
    return {name: found[name] for name in found if name in NAMES[:count]}


def combiner(count: int = 3) -> LossTransformer:
    torch.manual_seed(2)
    return LossTransformer(NAMES[:count], width=8, heads=2, feedforward=8, scale_hidden=8, start="random")


def outer(of: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(of.parameters(), 0.05)


def inner(of: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(of.parameters(), 0.1, momentum=0.9)


def batches(count: int, size: int = 6) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 4, generator=generator), torch.randint(3, (size,), generator=generator))
        for _ in range(count)
    ]


def dataset(count: int, size: int = 6) -> torch.utils.data.TensorDataset:
    """Return the batches as a data set, which a loader without shuffling cuts in the same way."""
    pieces = batches(count, size)
    return torch.utils.data.TensorDataset(torch.cat([x for x, _ in pieces]), torch.cat([y for _, y in pieces]))


def without_batch_norm() -> nn.Module:
    """Return a model for several processes, each of which would have statistics of its own."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def outer_sgd(of: nn.Module) -> torch.optim.Optimizer:
    """Return SGD; the first steps of Adam would enlarge rounding errors of gradients that are 0."""
    return torch.optim.SGD(of.parameters(), 0.1)


def alone(number: int, count: int = 3, steps: int = 6) -> dict[str, Tensor]:
    """Return weights and phi of one process that trains on whole batches, `number` per step of the optimiser."""
    model, phi = without_batch_norm(), combiner(count)
    optimizer = inner(model)
    bilevel = Bilevel(model, phi, outer_sgd(phi), every=2)
    for index, (x, y) in enumerate(batches(steps)):
        bilevel.backward(lambda x=x, y=y: losses(model, x, y, count), accumulate=number)
        if (index + 1) % number == 0:
            optimizer.step()
            optimizer.zero_grad()
    assert bilevel.outer_steps > 0
    return together(model, phi)


def together(model: nn.Module, phi: nn.Module) -> dict[str, Tensor]:
    """Return copies of weights and phi under names of their own."""
    pairs = [*model.state_dict().items(), *((f"phi.{name}", value) for name, value in phi.state_dict().items())]
    return {name: value.detach().clone() for name, value in pairs}


def agree_with_one_process(results: Sequence[dict[str, Tensor]], expected: dict[str, Tensor]) -> None:
    """Fail unless all processes end with the same bits, and to 1e-5 with the numbers of one process."""
    for name, value in expected.items():
        assert all(torch.equal(results[0][name], other[name]) for other in results[1:]), name
        torch.testing.assert_close(results[0][name], value, rtol=1e-5, atol=1e-5, msg=name)


class Gradients:
    """Records ``.grad`` of every parameter before each step of an optimiser, divided by a gradient scaler's factor."""

    def __init__(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None = None) -> None:
        self.steps: list[list[Tensor]] = []
        self._scaler = scaler
        optimizer.register_step_pre_hook(self._record)

    def _record(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        parameters = [each for group in optimizer.param_groups for each in group["params"]]
        self.steps.append([torch.zeros_like(p) if p.grad is None else p.grad.detach().clone() for p in parameters])

    def equal(self, other: Gradients) -> None:
        """Fail unless all steps agree to 1e-6."""
        assert len(self.steps) == len(other.steps) > 0
        for one, two in zip(self.steps, other.steps, strict=True):
            assert any(part.abs().max() > 1e-3 for part in two)
            for found, expected in zip(one, two, strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


class Plain:
    """The plain loop: `Bilevel` with a window per optimiser step.

    Args:
        windows: The micro-batches of each optimiser step.
        size: n of a whole window; a shorter one ends early.
    """

    def __init__(
        self,
        windows: Sequence[Sequence[tuple[Tensor, Tensor]]],
        size: int,
        *,
        count: int = 3,
        setup: Setup | None = None,
        clip: float | None = None,
        each: Callable[[int], int] | None = None,
        **settings: Any,
    ) -> None:
        self.model, self.combiner = net(), combiner(count)
        self.optimizer = inner(self.model)
        self.gradients = Gradients(self.optimizer)
        settings = {"every": 2, "setup": setup, "inner_optimizer": self.optimizer, **settings}
        self.bilevel = Bilevel(self.model, self.combiner, outer(self.combiner), **settings)
        self.results = []
        for window in windows:
            for x, y in window:
                compute = lambda x=x, y=y: losses(self.model, x, y, count)  # noqa: E731
                number = size if each is None else each(len(window))
                self.results.append(self.bilevel.backward(compute, accumulate=number))
            if clip is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), clip)
            self.optimizer.step()
            self.bilevel.after_step()
            self.optimizer.zero_grad()


def agree(found: tuple[nn.Module, nn.Module], plain: Plain) -> None:
    """Fail unless the weights, buffers and phi at the end agree to 1e-6 with those of the plain loop.

    Args:
        found: The model and the combiner.
        plain: The plain loop.
    """
    start = combiner(len(plain.combiner.names)).state_dict()
    for one, two in zip(found, (plain.model, plain.combiner), strict=True):
        for name, expected in two.state_dict().items():
            torch.testing.assert_close(one.state_dict()[name], expected, rtol=1e-6, atol=1e-6, msg=name)
    moved = [not torch.equal(start[name], value) for name, value in plain.combiner.state_dict().items()]
    assert any(moved)


def windows(count: int, size: int, per_epoch: int | None = None) -> list[list[tuple[Tensor, Tensor]]]:
    """Return the micro-batches of each optimiser step; the end of an epoch ends a window.

    Args:
        count: Micro-batches.
        size: n.
        per_epoch: Micro-batches per epoch; None: all.
    """
    pieces, found = batches(count), []
    for start in range(0, count, per_epoch or count):
        epoch = pieces[start : start + (per_epoch or count)]
        found += [epoch[first : first + size] for first in range(0, len(epoch), size)]
    return found


def copied(module: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(module.state_dict())


def same_bits(one: nn.Module, two: nn.Module) -> bool:
    """Tell whether two modules hold the same bits."""
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    return all(torch.equal(*pair) for pair in pairs)
