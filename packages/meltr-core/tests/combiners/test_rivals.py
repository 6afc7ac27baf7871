"""The published rivals of the loss transformer: each against its paper's formulas, or against another library's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import nn

from bilevel_cases import scheme_of
from meltr import Bilevel, LinearCombiner, sensitivities
from meltr.combiners.base import SelfTrained
from meltr.combiners.dwa import DynamicWeightAverage
from meltr.combiners.famo import Famo
from meltr.combiners.fixed import FixedCombiner
from meltr.combiners.gradnorm import GradNorm
from meltr.combiners.uncertainty import UncertaintyCombiner
from meltr.engine.checkpoints import load_module, save_module
from meltr.errors import UserError
from meltr.plugins import discover, load_object
from meltr.settings import resolve
from places import TOY

LOSSES = torch.tensor([0.7, 2.0, 5.0])
RIVALS = ("uncertainty", "dwa", "gradnorm", "famo", "auto-lambda")


@dataclass
class FakeStep:
    """What the engine shows a rule of one inner step."""

    losses: torch.Tensor
    norms: torch.Tensor | None = None
    after: torch.Tensor | None = None

    def gradient_norms(self) -> torch.Tensor:
        assert self.norms is not None
        return self.norms

    def losses_again(self) -> torch.Tensor:
        assert self.after is not None
        return self.after


def train(combiner: SelfTrained, optimizer: torch.optim.Optimizer | float, step: FakeStep) -> None:
    """One update as the engine makes it; a number is the learning rate of plain descent."""
    gradients = combiner.own_gradients(step)
    for parameter, gradient in zip(combiner.parameters(), gradients, strict=True):
        parameter.grad = gradient
    if gradients:
        (torch.optim.SGD(combiner.parameters(), optimizer) if isinstance(optimizer, float) else optimizer).step()
        combiner.after_update()


def random_losses(steps: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [0.2 + torch.rand(3, generator=generator) * torch.tensor([1.0, 4.0, 10.0]) for _ in range(steps)]


def torchjd():
    return pytest.importorskip("torchjd.scalarization", reason="the second implementation is in TorchJD")


# Uncertainty weighting


def test_uncertainty_is_the_log_likelihood_of_the_paper():
    m = UncertaintyCombiner(3)
    m.log_variances.data = torch.tensor([-1.0, 0.0, 2.0])
    sigma = [math.exp(s / 2) for s in (-1.0, 0.0, 2.0)]
    expected = sum(loss / (2 * x**2) + math.log(x) for loss, x in zip(LOSSES.tolist(), sigma, strict=True))
    value, a = sensitivities(m, LOSSES)
    assert float(value) == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(a, torch.tensor([1 / (2 * x**2) for x in sigma]))


def test_uncertainty_starts_with_the_weight_that_was_asked_for():
    """Weight 1 is the classification form at s = 0, and the two forms differ by a constant only."""
    for weight, combiner in ((1.0, UncertaintyCombiner(3)), (0.5, UncertaintyCombiner(3, start_weight=0.5))):
        torch.testing.assert_close(sensitivities(combiner, LOSSES)[1], torch.full((3,), weight))
    s = torch.tensor([-1.0, 0.5, 2.0])
    m = UncertaintyCombiner(3)
    m.log_variances.data = s - math.log(2)
    classification = ((-s).exp() * LOSSES + s / 2).sum()
    assert float(m(LOSSES).detach()) == pytest.approx(float(classification) - 3 * math.log(2) / 2, rel=1e-6)
    with pytest.raises(ValueError, match="start_weight must be > 0, got 0"):
        UncertaintyCombiner(3, start_weight=0)


def test_uncertainty_descends_its_own_value():
    m = UncertaintyCombiner(3)
    m.log_variances.data = torch.tensor([-1.0, 0.3, 2.0])
    (gradient,) = m.own_gradients(FakeStep(LOSSES))
    (expected,) = torch.autograd.grad(m(LOSSES), [m.log_variances])
    torch.testing.assert_close(gradient, expected)


def test_uncertainty_settles_where_weight_times_loss_is_one_half():
    m = UncertaintyCombiner(3)
    optimizer = torch.optim.SGD(m.parameters(), 0.5)
    for _ in range(200):
        train(m, optimizer, FakeStep(LOSSES))
    torch.testing.assert_close(m.weights.detach() * LOSSES, torch.full((3,), 0.5), atol=1e-4, rtol=0)


def test_uncertainty_equals_torchjd():
    """TorchJD has the regression form from s = 0, which is weight 1/2 here."""
    m, other = UncertaintyCombiner(3, start_weight=0.5), torchjd().UW(3)
    optimizers = [torch.optim.Adam(each.parameters(), 0.1) for each in (m, other)]
    for losses in random_losses(20):
        torch.testing.assert_close(m(losses), other(losses))
        train(m, optimizers[0], FakeStep(losses))
        optimizers[1].zero_grad()
        other(losses).backward()
        optimizers[1].step()
    torch.testing.assert_close(m.log_variances, other.log_var)


# Dynamic Weight Average


def feed(m: DynamicWeightAverage, *epochs: list[torch.Tensor]) -> None:
    for epoch in epochs:
        for losses in epoch:
            assert m.own_gradients(FakeStep(losses)) == []
        m.end_epoch()


def test_dwa_weighs_by_the_ratio_of_the_last_two_epochs():
    m = DynamicWeightAverage(2)
    feed(m, [torch.tensor([2.0, 4.0]), torch.tensor([4.0, 8.0])])
    torch.testing.assert_close(m.weights, torch.ones(2))
    feed(m, [torch.tensor([3.0, 3.0])])
    # Means (3, 6), then (3, 3): rates 1 and 1/2, temperature 2.
    first = 2 * math.exp(0.5) / (math.exp(0.5) + math.exp(0.25))
    torch.testing.assert_close(sensitivities(m, torch.tensor([1.0, 9.0]))[1], torch.tensor([first, 2 - first]))


def test_dwa_takes_no_notice_of_an_epoch_without_steps():
    m, other = DynamicWeightAverage(2), DynamicWeightAverage(2)
    epochs = [torch.tensor([1.0, 2.0])], [torch.tensor([1.0, 1.0])]
    feed(m, [], epochs[0], [], epochs[1], [])
    feed(other, *epochs)
    torch.testing.assert_close(m.weights, other.weights, atol=0, rtol=0)


def test_dwa_stays_finite_when_a_loss_was_zero():
    """One that stays there counts as unchanged, one that rises from there as the slowest."""
    m = DynamicWeightAverage(2)
    feed(m, [torch.tensor([1.0, 0.0])], [torch.tensor([1.0, 0.0])])
    torch.testing.assert_close(m.weights, torch.ones(2))
    feed(m, [torch.tensor([1.0, 2.0])])
    torch.testing.assert_close(m.weights, torch.tensor([0.0, 2.0]))


def test_dwa_equals_torchjd():
    m, other = DynamicWeightAverage(3, temperature=1.5), torchjd().DWA(1.5)
    for step, losses in enumerate(random_losses(20), 1):
        torch.testing.assert_close(m(losses), other(losses))
        m.own_gradients(FakeStep(losses))
        if step % 5 == 0:
            m.end_epoch()
            other.step()
    assert int(m.epochs) == 4
    assert float((m.weights - 1).abs().max()) > 0.01


# GradNorm


def test_gradnorm_by_hand():
    m = GradNorm(2, alpha=1.0)
    m.prepare(torch.tensor([1.0, 4.0]))
    m.weights.data = torch.tensor([1.5, 0.5])
    # G = (3, 2), mean 2.5; l / l(0) = (0.5, 0.25), relative (4/3, 2/3); targets (3.33, 1.67): below, above.
    (gradient,) = m.own_gradients(FakeStep(torch.tensor([0.5, 1.0]), norms=torch.tensor([2.0, 4.0])))
    torch.testing.assert_close(gradient, torch.tensor([-2.0, 4.0]))


@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_gradnorm_descends_the_objective_of_the_paper(alpha):
    """Autograd through sum |G - target| on a real network, with the target held constant."""
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    points = torch.randn(8, 4)

    def losses():
        out = layer(points)
        return torch.stack([out[:, 0].square().mean(), 7 * (out[:, 1] - 1).square().mean(), out[:, 2].abs().mean()])

    m = GradNorm(3, alpha=alpha)
    m.prepare(LOSSES)
    m.weights.data = torch.tensor([0.5, 0.9, 1.6])
    now = losses()
    rows = [torch.autograd.grad(each, list(layer.parameters()), retain_graph=True) for each in now]
    weighted = torch.stack(
        [torch.cat([(w * part).flatten() for part in row]).norm() for w, row in zip(m.weights, rows, strict=True)]
    )
    ratio = now / LOSSES
    target = (weighted.mean() * (ratio / ratio.mean()) ** alpha).detach()
    (expected,) = torch.autograd.grad((weighted - target).abs().sum(), [m.weights])
    norms = torch.stack([torch.cat([part.flatten() for part in row]).norm() for row in rows])
    (gradient,) = m.own_gradients(FakeStep(now.detach(), norms=norms))
    torch.testing.assert_close(gradient, expected)


def test_gradnorm_turns_down_the_task_whose_gradient_is_too_large_and_keeps_the_sum():
    """With alpha 0 all weighted norms become equal: w = 3 / n / sum(1 / n)."""
    m = GradNorm(3, alpha=0.0)
    m.prepare(LOSSES)
    norms = torch.tensor([1.0, 1.0, 4.0])
    optimizer = torch.optim.Adam(m.parameters(), 0.01)
    weights = m.weights.detach()
    for _ in range(400):
        train(m, optimizer, FakeStep(LOSSES, norms=norms))
        assert float(weights.sum()) == pytest.approx(3, abs=1e-5)
        assert weights[2] < 1 < weights[0]
    torch.testing.assert_close(weights, 3 / norms / (1 / norms).sum(), atol=0.03, rtol=0)


def test_gradnorm_pulls_up_the_task_that_is_behind():
    m = GradNorm(2)
    m.prepare(torch.tensor([1.0, 1.0]))
    train(m, torch.optim.Adam(m.parameters(), 0.01), FakeStep(torch.tensor([0.1, 0.9]), norms=torch.ones(2)))
    assert m.weights[0] < 1 < m.weights[1]


def test_gradnorm_keeps_weights_positive():
    m = GradNorm(2)
    m.weights.data = torch.tensor([-0.2, 1.0])
    m.after_update()
    assert bool((m.weights > 0).all())
    assert float(m.weights.detach().sum()) == pytest.approx(2)


def test_gradnorm_takes_no_step_from_a_norm_that_is_not_finite():
    m = GradNorm(2)
    m.prepare(torch.ones(2))
    assert m.own_gradients(FakeStep(torch.ones(2), norms=torch.tensor([1.0, math.inf]))) == [None]


def test_gradnorm_refers_to_the_initial_losses_that_were_given():
    m = GradNorm(3, initial_losses=[1.0, 2.0, 3.0])
    m.prepare(LOSSES)
    torch.testing.assert_close(m.initial, torch.tensor([1.0, 2.0, 3.0]))
    with pytest.raises(UserError, match=r"initial_losses has 2 values for 3 losses\n.*primary, auxiliary_1"):
        GradNorm(3, initial_losses=[1.0, 2.0])
    with pytest.raises(UserError, match=r"must be > 0, but auxiliary_1 = -2\n.*--set initial_losses="):
        GradNorm(3).prepare(torch.tensor([1.0, -2.0, 1.0]))


# FAMO


def test_famo_gives_gradient_weights_that_sum_to_one():
    m = Famo(3, min_losses=[0.2, -1.0, 0.0])
    m.logits.data = torch.tensor([0.3, -1.0, 2.0])
    _, a = sensitivities(m, LOSSES)
    raw = torch.tensor([0.3, -1.0, 2.0]).softmax(0) / torch.tensor([0.5, 3.0, 5.0])
    torch.testing.assert_close(a, raw / raw.sum())
    assert float(a.sum()) == pytest.approx(1, abs=1e-6)


def test_famo_trains_its_logits_along_the_fall_of_the_logarithms():
    m = Famo(3)
    m.logits.data = torch.tensor([0.3, -1.0, 2.0])
    after = torch.tensor([0.6, 1.9, 5.1])
    (gradient,) = m.own_gradients(FakeStep(LOSSES, after=after))
    _, expected = torch.func.vjp(lambda w: w.softmax(0), m.logits.detach())
    torch.testing.assert_close(gradient, expected(LOSSES.log() - after.log())[0], atol=1e-6, rtol=1e-5)


def test_famo_helps_the_task_that_falls_least():
    m = Famo(2)
    train(m, torch.optim.Adam(m.parameters(), 0.025), FakeStep(torch.ones(2), after=torch.tensor([0.5, 0.9])))
    assert float(m.logits[0]) < 0 < float(m.logits[1])


def test_famo_equals_torchjd():
    bounds = torch.tensor([0.1, 0.0, -0.5])
    m, other = Famo(3, min_losses=bounds.tolist()), torchjd().FAMO(3, min_losses=bounds)
    assert m.sees_moved_weights
    optimizer = torch.optim.Adam(m.parameters(), 0.025, weight_decay=1e-3)
    losses = random_losses(30)
    for before, after in pairwise(losses):
        torch.testing.assert_close(m(before), other(before))
        other.update(after)
        train(m, optimizer, FakeStep(before, after=after))
    (logits,) = other.parameters()
    torch.testing.assert_close(m.logits, logits)
    assert float(logits.detach().abs().max()) > 0.05


def test_famo_names_the_loss_without_a_logarithm():
    m = Famo(["main", "size"])
    with pytest.raises(UserError, match=r"must be > 0, but size = -1\n.*--set min_losses="):
        m.prepare(torch.tensor([1.0, -1.0]))
    with pytest.raises(UserError, match=r"but main = -0\.5"):
        m.own_gradients(FakeStep(torch.ones(2), after=torch.tensor([-0.5, 1.0])))
    with pytest.raises(UserError, match="min_losses has 1 values for 2 losses"):
        Famo(["main", "size"], min_losses=[0.0])


# All of them


def build(name: str):
    info = discover().combiner(name)
    options = load_object(info.options)().model_dump(mode="json")
    return info, load_object(info.factory)(["a", "b", "c"], **options)


@pytest.mark.parametrize("name", RIVALS)
def test_rivals_are_built_from_their_default_options(name):
    info, combiner = build(name)
    assert combiner.learned == info.learned == (name == "auto-lambda")
    assert combiner.names == ("a", "b", "c")
    value, a = sensitivities(combiner, LOSSES)
    assert value.shape == ()
    assert bool((a > 0).all())


@pytest.mark.parametrize("name", RIVALS)
def test_rivals_continue_from_a_checkpoint(name, tmp_path):
    """As after a kill within the third epoch: the same weights, then and later."""
    combiner = build(name)[1]
    losses = random_losses(11)

    def advance(each, few):
        for before, after in pairwise(few):
            if isinstance(each, SelfTrained):
                train(each, 0.1, FakeStep(before, norms=1 + after, after=after))

    combiner.prepare(losses[0])
    for few in (losses[:3], losses[3:6]):
        advance(combiner, few)
        combiner.end_epoch()
    advance(combiner, losses[6:8])
    save_module(tmp_path / "combiner.safetensors", combiner)
    again = build(name)[1]
    load_module(tmp_path / "combiner.safetensors", again, "combiner")
    for each in (combiner, again):
        advance(each, losses[8:])
        each.end_epoch()
    assert torch.equal(sensitivities(combiner, LOSSES)[1], sensitivities(again, LOSSES)[1])
    if name != "auto-lambda":
        assert not torch.equal(sensitivities(again, LOSSES)[1], sensitivities(build(name)[1], LOSSES)[1])


@pytest.mark.parametrize("name", RIVALS)
def test_rivals_train_a_model_in_a_plain_loop(name):
    """Two losses that agree and one that is noise: the first two fall, whatever the weights start at."""
    torch.manual_seed(0)
    model, points = nn.Linear(4, 3), torch.randn(64, 4)
    target = points @ torch.randn(4, 2)
    info, combiner = build(name)

    def losses():
        out = model(points)
        fit = (out[:, :2] - target).square().mean(0)
        return [fit[0], 3 * fit[1], 1 + (out[:, 2] - torch.randn(64)).square().mean()]

    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    outer = torch.optim.Adam(combiner.parameters(), 0.01) if list(combiner.parameters()) else None
    scheme = info.settings.get("bilevel.scheme", "aid-fp-lite")
    bilevel = Bilevel(model, combiner, outer, every=1, gamma=0.0, scheme=scheme_of(scheme), inner_optimizer=optimizer)
    first = bilevel.backward(losses)
    for step in range(1, 120):
        optimizer.step()
        optimizer.zero_grad()
        last = bilevel.backward(losses)
        if step % 10 == 0:
            combiner.end_epoch()
    assert bool((last.losses[:2] < 0.1 * first.losses[:2]).all())
    assert not torch.equal(last.sensitivities, first.sensitivities)


def test_auto_lambda_is_the_linear_combiner_from_a_small_weight_without_constraint():
    combiner = build("auto-lambda")[1]
    assert isinstance(combiner, LinearCombiner)
    torch.testing.assert_close(combiner.weights.detach(), torch.full((3,), 0.1))
    combiner.raw.data -= 0.2
    assert float(combiner(LOSSES).detach()) == pytest.approx(-0.77)


@pytest.mark.parametrize("name", ["uncertainty", "gradnorm", "famo", "auto-lambda"])
def test_rivals_bring_their_settings_and_the_user_is_stronger(name):
    registry = discover([TOY])
    choice = {"backbone": "toy", "task": "classification", "dataset": "rings", "flags": {"combiner": name}}
    spec, brought = resolve(registry, **choice), registry.combiner(name).settings
    assert brought.keys() >= {"bilevel.outer_lr"}
    assert brought == {key: getattr(spec.bilevel, key.removeprefix("bilevel.")) for key in brought}
    assert resolve(registry, **choice, sets=["outer_lr=0.5"]).bilevel.outer_lr == 0.5


@pytest.mark.parametrize("kind", [FixedCombiner, LinearCombiner, UncertaintyCombiner])
def test_a_subclass_of_a_capturable_combiner_is_not_capturable(kind):
    class Changed(kind):
        pass

    settings = {"weights": (1.0, 1.0)} if kind is FixedCombiner else {}
    assert kind(2, **settings).capturable
    assert not Changed(2, **settings).capturable
