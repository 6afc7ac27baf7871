"""Combiners with a rule of their own and combiners of task gradients, as `Bilevel` serves them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from bilevel_cases import Encoder, SmoothConvNet, Tiny, build, flat
from meltr import Bilevel, Scope, Setup
from meltr.combiners.base import GradientCombiner, SelfTrained, as_names
from scope_cases import Vit


class Rule(SelfTrained):
    """Weights with a rule that writes down what it sees."""

    def __init__(self, losses: int, *, after: bool) -> None:
        super().__init__(as_names(losses))
        self.raw = nn.Parameter(torch.linspace(0.5, 1.5, losses))
        self.sees_moved_weights = after
        self.seen: list[dict] = []
        self.updates = 0

    def forward(self, losses: Tensor) -> Tensor:
        return (self.raw.to(losses) * losses).sum()

    def own_gradients(self, step) -> list[Tensor]:
        seen = {"losses": step.losses.clone(), "raw": self.raw.detach().clone()}
        if self.sees_moved_weights:
            seen["again"] = step.losses_again().clone()
        else:
            seen["norms"] = step.gradient_norms().clone()
        self.seen.append(seen)
        return [torch.ones_like(self.raw)]

    def after_update(self) -> None:
        self.updates += 1


class Rows(GradientCombiner):
    """Fixed weights applied to the task gradients; writes down the rows."""

    def __init__(self, losses: int) -> None:
        super().__init__(as_names(losses))
        self.weights = torch.linspace(0.5, 1.5, losses)

    def from_gradients(self, losses: Tensor, rows) -> tuple[list[Tensor | None], Tensor]:
        self.rows, self.values = rows, losses
        total: list[Tensor | None] = []
        for parts in zip(*rows, strict=True):
            known = [weight * part for weight, part in zip(self.weights, parts, strict=True) if part is not None]
            total.append(sum(known) if known else None)
        return total, self.weights.to(losses)


def stacked(losses) -> Tensor:
    return torch.stack(list(losses.values()))


def gradients(model: nn.Module, losses: dict[str, Tensor]) -> list[Tensor]:
    """The gradient of every loss, flat, zeros where a loss does not depend on a weight."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for loss in losses.values():
        row = [None] * len(parameters)
        if loss.requires_grad:
            row = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        parts = zip(row, parameters, strict=True)
        rows.append(torch.cat([(torch.zeros_like(p) if part is None else part).flatten() for part, p in parts]))
    return rows


def case(kind: type) -> nn.Module:
    if kind is Tiny:
        torch.manual_seed(0)
        return Tiny().double()
    return build(kind)[0]


KINDS = [Tiny, Encoder]
SLICES = [slice(0, 5), slice(5, 10)]


def pieces(model: Tiny) -> list:
    return [lambda rows=rows: model.losses(rows) for rows in SLICES]


@pytest.mark.parametrize("kind", KINDS)
def test_a_rule_before_the_step_sees_losses_and_gradient_norms(kind):
    """And moves its weights only after they have served for the inner gradient."""
    model = case(kind)
    plain, rule = copy.deepcopy(model), Rule(4, after=False)
    optimizer = torch.optim.SGD(rule.parameters(), 0.1)
    bilevel = Bilevel(model, rule, optimizer)
    start = rule.raw.detach().clone()
    torch.manual_seed(7)
    result = bilevel.backward(model.losses)
    torch.manual_seed(7)
    losses = plain.losses()
    rows = gradients(plain, losses)
    (seen,) = rule.seen
    torch.testing.assert_close(seen["losses"], stacked(losses).detach())
    torch.testing.assert_close(seen["norms"], torch.stack([row.norm() for row in rows]), rtol=1e-5, atol=1e-7)
    assert torch.equal(seen["raw"], start)
    torch.testing.assert_close(rule.raw.detach(), start - 0.1)
    torch.testing.assert_close(result.sensitivities, start.to(result.losses))
    assert rule.raw.grad is None
    rule.raw.data.copy_(start)
    rule(stacked(losses)).backward()
    torch.testing.assert_close(
        flat(p.grad for p in model.parameters()), flat(p.grad for p in plain.parameters()), rtol=1e-5, atol=1e-7
    )
    assert rule.updates == 1


@pytest.mark.parametrize("explicit", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_rule_after_the_step_sees_the_moved_weights_on_the_same_batch(kind, explicit):
    """Same random numbers; buffers and generators do not move; `Bilevel.after_step` or the next call, once."""
    model = case(kind)
    rule = Rule(4, after=True)
    bilevel = Bilevel(model, rule, torch.optim.SGD(rule.parameters(), 0.1))
    inner = torch.optim.SGD(model.parameters(), 0.05)
    torch.manual_seed(7)
    bilevel.backward(model.losses)
    assert not rule.seen
    before_step = copy.deepcopy(model)
    inner.step()
    moved = copy.deepcopy(model)
    torch.manual_seed(11)
    if explicit:
        bilevel.after_step()
        drawn, buffers = torch.rand(3), [buffer.clone() for buffer in model.buffers()]
        torch.manual_seed(11)
        assert torch.equal(drawn, torch.rand(3))
        assert all(map(torch.equal, buffers, before_step.buffers()))
        bilevel.after_step()  # nothing waits any more
    else:
        bilevel.backward(model.losses)
    torch.manual_seed(7)
    expected = stacked(moved.losses()).detach()
    torch.manual_seed(7)
    unmoved = stacked(before_step.losses()).detach()
    (seen,) = rule.seen
    torch.testing.assert_close(seen["again"], expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(seen["losses"], unmoved, rtol=1e-6, atol=1e-8)
    assert (expected - unmoved).norm() > 1e-4
    torch.testing.assert_close(rule.raw.detach(), torch.linspace(0.5, 1.5, 4) - 0.1)
    assert rule.updates == 1


def test_a_rule_trains_at_every_step_and_takes_no_outer_steps():
    model, rule = case(Tiny), Rule(4, after=True)
    bilevel = Bilevel(model, rule, torch.optim.SGD(rule.parameters(), 0.1), every=2)
    for _ in range(5):
        assert not bilevel.outer_step_due
        assert bilevel.backward(model.losses).outer is None
    assert len(rule.seen) == 4
    torch.testing.assert_close(rule.raw.detach(), torch.linspace(0.5, 1.5, 4) - 0.4)
    assert bilevel.outer_steps == 0


@pytest.mark.parametrize("after", [False, True])
def test_rules_with_pieces_of_a_batch(after):
    """Losses are means over the pieces, gradient norms those of the mean gradient."""
    model, rule = case(Tiny), Rule(4, after=after)
    plain = copy.deepcopy(model)
    bilevel = Bilevel(model, rule, torch.optim.SGD(rule.parameters(), 0.1))
    torch.manual_seed(7)
    bilevel.backward(pieces(model))
    torch.optim.SGD(model.parameters(), 0.05).step()
    moved = copy.deepcopy(model)
    bilevel.after_step()

    def mean(of: Tiny) -> dict[str, Tensor]:
        torch.manual_seed(7)
        each = [compute() for compute in pieces(of)]
        return {name: (each[0][name] + each[1][name]) / 2 for name in each[0]}

    losses = mean(plain)
    (seen,) = rule.seen
    torch.testing.assert_close(seen["losses"], stacked(losses).detach(), rtol=1e-12, atol=0)
    if after:
        torch.testing.assert_close(seen["again"], stacked(mean(moved)).detach(), rtol=1e-12, atol=0)
    else:
        norms = torch.stack([row.norm() for row in gradients(plain, losses)])
        torch.testing.assert_close(seen["norms"], norms, rtol=1e-12, atol=0)
    for one, other in zip(model.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-14, atol=0)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("split", [False, True])
def test_rules_with_a_gradient_scaler(after, split):
    """Norms are unscaled, ``.grad`` is scaled."""
    model, rule = case(Tiny).float(), Rule(4, after=after)
    plain, twin = copy.deepcopy(model), Rule(4, after=after)
    compute, same = (pieces(model), pieces(plain)) if split else (model.losses, plain.losses)
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    scaled = Bilevel(model, rule, torch.optim.SGD(rule.parameters(), 0.1), setup=Setup(scaler=scaler))
    unscaled = Bilevel(plain, twin, torch.optim.SGD(twin.parameters(), 0.1))
    for bilevel, function in ((scaled, compute), (unscaled, same)):
        torch.manual_seed(7)
        bilevel.backward(function)
    torch.testing.assert_close(
        flat(p.grad for p in model.parameters()), 512 * flat(p.grad for p in plain.parameters()), rtol=1e-5, atol=1e-5
    )
    if not after:
        torch.testing.assert_close(rule.seen[0]["norms"], twin.seen[0]["norms"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["heads", "last_block"])
def test_a_rule_sees_gradient_norms_by_the_parameters_in_scope(kind):
    torch.manual_seed(2)
    model = Vit().double()
    rule = Rule(4, after=False)
    names = getattr(model, kind)()
    bilevel = Bilevel(model, rule, torch.optim.SGD(rule.parameters(), 0.1), scope=Scope(kind))
    for _ in range(2):
        plain = copy.deepcopy(model)
        torch.manual_seed(7)
        bilevel.backward(model.losses)
        for name, parameter in plain.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and name in names)
        torch.manual_seed(7)
        losses = plain.losses()
        norms = torch.stack([row.norm() for row in gradients(plain, losses)])
        torch.testing.assert_close(rule.seen[-1]["norms"], norms, rtol=1e-10, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_combiner_of_task_gradients_gets_the_rows_and_makes_the_gradient(kind):
    model, m = case(kind), Rows(4)
    plain = copy.deepcopy(model)
    bilevel = Bilevel(model, m, every=1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    torch.manual_seed(7)
    result = bilevel.backward(model.losses)
    torch.manual_seed(7)
    losses = plain.losses()
    rows = gradients(plain, losses)
    for row, expected in zip(m.rows, rows, strict=True):
        parts = zip(row, bilevel.parameters, strict=True)
        mine = torch.cat([(torch.zeros_like(p) if part is None else part).flatten() for part, p in parts])
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-7)
    total = 1 + sum(weight * row for weight, row in zip(m.weights, rows, strict=True))
    torch.testing.assert_close(flat(p.grad for p in bilevel.parameters), total.double(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result.combined, (m.weights.to(result.losses) * result.losses).sum())
    assert result.outer is None
    for one, other in zip(model.buffers(), plain.buffers(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("scale", [None, 1024.0])
def test_a_combiner_of_task_gradients_with_pieces_and_scaler(scale):
    """Rows of the mean losses, unscaled; buffers move once a piece."""
    model, m = case(Tiny), Rows(4)
    plain = copy.deepcopy(model)
    scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
    torch.manual_seed(7)
    Bilevel(model, m, setup=Setup(scaler=scaler)).backward(pieces(model))
    torch.manual_seed(7)
    each = [compute() for compute in pieces(plain)]
    losses = {name: (each[0][name] + each[1][name]) / 2 for name in each[0]}
    rows = gradients(plain, losses)
    for row, expected in zip(m.rows, rows, strict=True):
        # unused parameters have no part in a row
        mine = torch.cat([(torch.zeros_like(p) if part is None else part).flatten()
                          for part, p in zip(row, model.parameters(), strict=True)])  # fmt: skip
        torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-15)
    total = (scale or 1.0) * sum(weight * row for weight, row in zip(m.weights, rows, strict=True))
    torch.testing.assert_close(flat(p.grad for p in model.parameters()), total, rtol=1e-12, atol=1e-13)
    for one, other in zip(model.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-14, atol=0)


def test_overflow_with_a_combiner_of_task_gradients_is_the_scaler_s_business():
    model, _ = build(SmoothConvNet)
    m = Rows(3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60, backoff_factor=2.0**-50)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    bilevel = Bilevel(model, m, setup=Setup(autocast=torch.float16, scaler=scaler))
    moved = []
    for _ in range(3):
        before = flat(p.detach().clone() for p in model.parameters())
        optimizer.zero_grad()
        bilevel.backward(model.losses)
        scaler.step(optimizer)
        scaler.update()
        moved.append(not torch.equal(before, flat(p.detach() for p in model.parameters())))
    assert moved == [False, True, True]
    assert all(p.isfinite().all() for p in model.parameters())
