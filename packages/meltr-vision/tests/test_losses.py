"""The three losses against explicit loops, their random numbers, and their derivatives."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from meltr.context import RunContext
from meltr_vision.adapter import VisionAdapter
from meltr_vision.losses.draws import Draws, draw, draw_beta
from meltr_vision.losses.tasks import rotate, task_losses
from meltr_vision.model.classifier import Classifier
from meltr_vision.model.resnet import CifarTrunk

CPU = torch.device("cpu")
ALL = ("classification", "mixup", "rotation")


def cross_entropy(logits: Tensor, label: int) -> float:
    """-log softmax(logits)[label], written out."""
    values = [float(v) for v in logits.double()]
    return math.log(sum(math.exp(v - max(values)) for v in values)) + max(values) - values[label]


@pytest.fixture
def small() -> tuple[Classifier, Tensor, Tensor]:
    torch.manual_seed(0)
    model = Classifier(CifarTrunk(1), 64, 5, rotation=True).double().eval()
    return model, torch.randn(6, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 4, 0])


def test_formulas_against_loops(small: tuple[Classifier, Tensor, Tensor]) -> None:
    model, x, y = small
    lam, partner, turns = 0.3, torch.tensor([5, 3, 0, 1, 2, 4]), torch.tensor([0, 1, 2, 3, 1, 2])
    draws = Draws(torch.tensor(lam, dtype=torch.float64), partner, turns)
    losses = task_losses(model, x, y, wanted=ALL, draws=draws)
    assert list(losses) == list(ALL)
    expected = dict.fromkeys(ALL, 0.0)
    with torch.no_grad():
        for i in range(6):
            j = int(partner[i])
            expected["classification"] += cross_entropy(model(x[i : i + 1])[0], int(y[i])) / 6
            mixed = model((lam * x[i] + (1 - lam) * x[j])[None])[0]
            both = lam * cross_entropy(mixed, int(y[i])) + (1 - lam) * cross_entropy(mixed, int(y[j]))
            expected["mixup"] += both / 6
            turned = torch.from_numpy(np.rot90(x[i].numpy(), int(turns[i]), axes=(1, 2)).copy())
            expected["rotation"] += cross_entropy(model.rot(model.trunk(turned[None]))[0], int(turns[i])) / 6
    for name in ALL:
        assert float(losses[name].detach()) == pytest.approx(expected[name], rel=1e-6)


def test_all_four_rotations(small: tuple[Classifier, Tensor, Tensor]) -> None:
    model, x, y = small
    draws = draw(ALL, 6, alpha=1.0, all_rotations=True, device=CPU, generator=None)
    found = task_losses(model, x, y, wanted=("rotation",), draws=draws)["rotation"]
    with torch.no_grad():
        expected = [
            cross_entropy(model.rot(model.trunk(torch.rot90(x[i : i + 1], r, (2, 3))))[0], r)
            for i in range(6)
            for r in range(4)
        ]
    assert float(found.detach()) == pytest.approx(sum(expected) / 24, rel=1e-6)


def test_rotation_is_exact_and_as_numpy_does_it() -> None:
    x = torch.arange(4 * 2 * 5 * 5).view(4, 2, 5, 5)
    found = rotate(x, torch.arange(4))
    for turns in range(4):
        np.testing.assert_array_equal(found[turns].numpy(), np.rot90(x[turns].numpy(), turns, axes=(1, 2)))


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 2.0, 8.0])
def test_lambda_is_beta_distributed(alpha: float) -> None:
    values = draw_beta(alpha, device=CPU, generator=torch.Generator().manual_seed(0), size=(4000,)).double().numpy()
    assert np.isfinite(values).all()
    # float32 rounds the tails of small alpha to exactly 0 and 1, so the comparison stays inside.
    points = np.linspace(1e-4, 1 - 1e-4, 200)
    found = np.searchsorted(np.sort(values), points, side="right") / len(values)
    gap = np.abs(found - stats.beta(alpha, alpha).cdf(points)).max()
    assert gap < stats.kstwo(len(values)).isf(1e-3)


def test_only_wanted_losses_are_computed(make_context: Callable[..., RunContext]) -> None:
    context, adapter = make_context(), VisionAdapter()
    data = adapter.build_data(context)
    model = adapter.build_model(context, data).eval()
    seen: list[int] = []
    model.trunk.register_forward_hook(lambda _, inputs, out: seen.append(len(inputs[0])))
    batch = next(data.train.batches(0))
    for wanted in ALL:
        context.generator.manual_seed(5)
        alone = adapter.compute_task_losses(model, batch, context.with_losses(wanted))
        context.generator.manual_seed(5)
        together = adapter.compute_task_losses(model, batch, context)
        assert list(alone) == [wanted]
        torch.testing.assert_close(alone[wanted], together[wanted])
    assert len(seen) == 3 + 9
    primary = make_context(losses=("classification",))
    assert adapter.build_model(primary, data).rot is None


def test_draws_come_from_the_generator_or_the_global_one(make_context: Callable[..., RunContext]) -> None:
    def numbers(generator: torch.Generator | None) -> list[Any]:
        draws = draw(ALL, 64, alpha=0.5, all_rotations=False, device=CPU, generator=generator)
        return [float(draws.lam), draws.permutation.tolist(), draws.turns.tolist()]

    before = torch.get_rng_state()
    first = numbers(torch.Generator().manual_seed(1))
    assert first == numbers(torch.Generator().manual_seed(1))
    assert first != numbers(torch.Generator().manual_seed(2))
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(3)
    second = numbers(None)
    torch.manual_seed(3)
    assert second == numbers(None)
    assert sorted(second[1]) == list(range(64))
    assert set(Counter(second[2])) == {0, 1, 2, 3}


@pytest.mark.parametrize("batchnorm", ["clean", "joint"])
def test_forward_mode_differences_and_double_backward_agree(batchnorm: str) -> None:
    torch.manual_seed(0)
    model = Classifier(CifarTrunk(1), 64, 5, rotation=True, batchnorm=batchnorm).double().train()
    x, y = torch.randn(8, 3, 8, 8, dtype=torch.float64), torch.arange(8) % 5
    draws = draw(ALL, 8, alpha=1.0, all_rotations=False, device=CPU, generator=torch.Generator().manual_seed(0))
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    tangents = {name: torch.randn_like(p) for name, p in parameters.items()}

    class Losses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self) -> Tensor:
            return torch.stack(list(task_losses64(self.inner, x, y, draws).values()))

    def losses_at(step: float) -> Tensor:
        moved = {f"inner.{name}": p + step * tangents[name] for name, p in parameters.items()}
        return functional_call(Losses(), moved)

    with torch.no_grad(), forward_ad.dual_level():
        duals = {f"inner.{name}": forward_ad.make_dual(p, tangents[name]) for name, p in parameters.items()}
        exact = forward_ad.unpack_dual(functional_call(Losses(), duals)).tangent
    with torch.no_grad():
        difference = (losses_at(1e-8) - losses_at(-1e-8)) / 2e-8
    torch.testing.assert_close(exact, difference, rtol=1e-4, atol=1e-6)
    weights = torch.ones(3, dtype=torch.float64, requires_grad=True)
    combined = weights @ Losses()()
    gradients = torch.autograd.grad(combined, list(model.parameters()), create_graph=True)
    inner = sum((g * tangents[name]).sum() for g, (name, _) in zip(gradients, model.named_parameters(), strict=True))
    (double,) = torch.autograd.grad(inner, weights)
    torch.testing.assert_close(exact, double, rtol=1e-6, atol=1e-8)


def task_losses64(model: nn.Module, x: Tensor, y: Tensor, draws: Draws) -> dict[str, Tensor]:
    """`task_losses` with its conversion to float32 taken out, so that differences can be exact."""
    original = Tensor.float
    Tensor.float = lambda self: self  # type: ignore[method-assign]
    try:
        return task_losses(model, x, y, wanted=ALL, draws=draws)
    finally:
        Tensor.float = original  # type: ignore[method-assign]


def test_losses_are_float32_scalars_under_autocast(make_context: Callable[..., RunContext]) -> None:
    context, adapter = make_context(), VisionAdapter()
    data = adapter.build_data(context)
    model = adapter.build_model(context, data).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = adapter.compute_task_losses(model, next(data.train.batches(0)), context)
    for name, chance in {"classification": 10, "mixup": 10, "rotation": 4}.items():
        assert losses[name].dtype == torch.float32
        assert losses[name].dim() == 0
        assert losses[name].requires_grad
        assert float(losses[name].detach()) == pytest.approx(math.log(chance), abs=1.2)
