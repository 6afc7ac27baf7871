"""What a call of `Bilevel.backward` leaves behind: what ``loss.backward()`` of the weighted sum would leave.

The truth is taken on a deep copy: one forward with the same random numbers, ``sum(a[t] * losses[t]).backward()`` with
the task weights a that the call reports. With an outer step and without, with every estimator and number of losses.
"""

from __future__ import annotations

import copy
import random
import warnings
from collections import Counter, deque
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import weight_norm as older_weight_norm
from torch.nn.utils.parametrizations import spectral_norm

from meltr import (
    Auto,
    Bilevel,
    CentralDifference,
    ForwardMode,
    LossTransformer,
    MeltrError,
    OneSidedDifference,
    PerTask,
    Scope,
    Setup,
)
from meltr.combiners.base import GradientCombiner

ESTIMATORS = [Auto, ForwardMode, PerTask, CentralDifference, OneSidedDifference]
LOSSES = [2, 3, 4]


class Parts(nn.Module):
    """A model, and whatever else the losses use; `others` are not registered as parts of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3))
        self.others = nn.ModuleDict()
        self.inputs, self.labels = torch.randn(12, 6), torch.randint(0, 3, (12,))

    def losses(self) -> list[torch.Tensor]:
        return self.made_of(self.model(self.inputs))

    def made_of(self, output: torch.Tensor, second: torch.Tensor | None = None) -> list[torch.Tensor]:
        second = output.square().mean() if second is None else second
        return [
            F.cross_entropy(output, self.labels),
            second,
            output.abs().mean(),
            output.softmax(1).square().mean(),
        ]


class Head(Parts):
    """A loss with weights of its own, beside the model."""

    def __init__(self) -> None:
        super().__init__()
        self.others["head"] = nn.Linear(3, 2)

    def losses(self) -> list[torch.Tensor]:
        output = self.model(self.inputs)
        return self.made_of(output, self.others["head"](output).square().mean())


class Temperature(Parts):
    """A learned number that the primary loss is divided by, and no part of a module."""

    def __init__(self) -> None:
        super().__init__()
        self.others["scale"] = nn.ParameterDict({"t": nn.Parameter(torch.tensor(1.5))})

    def losses(self) -> list[torch.Tensor]:
        output = self.model(self.inputs) / self.others["scale"]["t"]
        return self.made_of(output)


class Adapters(Parts):
    """Low-rank weights beside a frozen layer, added after the loop was made."""

    def extend(self) -> None:
        self.model[0].requires_grad_(False)
        self.others["down"], self.others["up"] = nn.Linear(6, 2, bias=False), nn.Linear(2, 8, bias=False)

    def losses(self) -> list[torch.Tensor]:
        hidden = self.model[0](self.inputs)
        if "down" in self.others:
            hidden = hidden + self.others["up"](self.others["down"](self.inputs))
        return self.made_of(self.model[3](hidden.tanh()))


class Running(Parts):
    """Buffers that are changed in place, assigned anew, made in the first forward, several views of one memory."""

    def __init__(self) -> None:
        super().__init__()
        self.model = _Buffers()


class _Buffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh())
        self.head = nn.Linear(8, 3)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("latest", None)
        base = torch.zeros(4)
        self.register_buffer("base", base)
        self.register_buffer("seen", base[1:3])
        self.register_buffer("wide", torch.ones(1).expand(5))
        with torch.inference_mode():
            frozen = torch.ones(2)
        self.register_buffer("fixed", frozen)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output = self.head(self.body(x))
        if not hasattr(self, "made"):
            self.register_buffer("made", torch.zeros(()))
        with torch.no_grad():
            self.count = self.count + 1
            self.mean = 0.9 * self.mean + 0.1 * output.mean(0)
            self.latest = output.mean(0)
            self.made += 1
            self.base += 1
        return output * (1 + 0 * self.fixed.sum()) + 0 * self.wide.sum()


class Plain(Parts):
    """State in plain attributes: numbers, a tensor, a queue, a dictionary, generators, and what comes and goes."""

    def __init__(self) -> None:
        super().__init__()
        self.model = _Plain()


class _Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.calls, self.warm, self.mean = 0, False, torch.zeros(3)
        self.recent: deque[torch.Tensor] = deque([torch.ones(3)], maxlen=2)
        self.means = {"new": torch.zeros(3), "old": [torch.zeros(3)]}
        self.first: str | None = "first"
        self.draws = torch.Generator().manual_seed(3)
        self.numbers = [np.random.default_rng(3), random.Random(3)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(3, generator=self.draws) + self.numbers[0].random() + self.numbers[1].random()
        output = self.head(self.body(x).tanh()) * (1 + self.calls) + noise
        output = output + self.mean.clone() + sum(self.recent) + self.means["new"] + self.means["old"][0]
        if self.warm:
            output = output * 2
        if hasattr(self, "first"):
            output = output + 1
            del self.first
        self.calls, self.warm, self.added = self.calls + 1, True, output.detach().mean(0)
        self.mean.add_(self.added)
        self.recent.append(self.added)
        self.means["old"][0] = self.means["new"]
        self.means["new"] = 0.5 * self.added
        return output


class Objects(Parts):
    """State in objects of the model's own code, in numpy's arrays and generators, and in further containers."""

    def __init__(self) -> None:
        super().__init__()
        self.model = _Objects()


class _Meter:
    def __init__(self) -> None:
        self.count, self.mean, self.above = 0, torch.zeros(3), self  # a circle

    def see(self, output: torch.Tensor) -> None:
        self.count += 1
        self.mean.add_(output.detach().mean(0))


@dataclass
class _Seen:
    meter: _Meter
    total: float = 0.0


class _Pair(NamedTuple):
    one: torch.Tensor
    other: int


def _normed(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # there is a newer one
        return older_weight_norm(layer)


class _Objects(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = _normed(nn.Linear(6, 8)), nn.Linear(8, 3)
        self.meter = _Meter()
        self.seen, self.space = _Seen(self.meter), SimpleNamespace(calls=0)
        self.array, self.draws = np.zeros(3), np.random.RandomState(3)
        self.pair, self.counts = _Pair(torch.zeros(3), 0), Counter({"calls": 0})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output = self.head(self.body(x).tanh()) * (1 + self.meter.count + self.draws.rand())
        output = output + self.meter.mean.clone() + torch.from_numpy(self.array).float() + self.pair.one.clone()
        output = output + self.seen.total + self.space.calls + self.counts["calls"] + self.pair.other
        self.meter.see(output)
        self.seen.total += 0.1
        self.space.calls += 1
        self.counts["calls"] += 1
        self.array += output.detach().mean(0).numpy()
        self.pair.one.add_(0.1)
        self.pair = self.pair._replace(other=self.pair.other + 1)
        return output

    def numbers(self) -> torch.Tensor:
        own = [self.meter.count, self.seen.total, self.space.calls, self.counts["calls"], self.pair.other]
        tensors = (self.meter.mean, self.pair.one, torch.from_numpy(self.array).float(), self.body.weight.flatten())
        return torch.cat([torch.tensor([*map(float, own), self.draws.rand()]), *tensors]).detach()


class Momentum(Parts):
    """An encoder that follows another one in every forward, and a layer that the model holds under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.model = _Momentum()


class _Momentum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.follower = nn.Linear(6, 3), nn.Linear(6, 3).requires_grad_(False)
        self.follower.load_state_dict(self.encoder.state_dict())
        self.norm = nn.BatchNorm1d(3)
        self.again = nn.Sequential(self.norm, nn.Linear(3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            for own, other in zip(self.follower.parameters(), self.encoder.parameters(), strict=True):
                own.mul_(0.9).add_(other, alpha=0.1)
        return self.again(self.norm(self.encoder(x))) + self.follower(x)


class Criterion(Parts):
    """A loss that is a module beside the model, with buffers and a counter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.others["criterion"] = _Criterion()

    def losses(self) -> list[torch.Tensor]:
        output = self.model(self.inputs)
        return self.made_of(output, self.others["criterion"](output))


class _Criterion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.centers, self.norm, self.calls = nn.Parameter(torch.ones(3)), nn.BatchNorm1d(3), 0
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, output: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        found = (self.norm(output) - self.centers - self.seen).square().mean() * self.calls
        with torch.no_grad():
            self.seen = self.seen + output.mean(0)
        return found


class Queue(Parts):
    """A contrastive loss against a queue that its own forward moves."""

    def __init__(self) -> None:
        super().__init__()
        self.model = _Queue()

    def losses(self) -> list[torch.Tensor]:
        return self.made_of(*self.model(self.inputs))


class _Queue(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("queue", F.normalize(torch.randn(48, 8), dim=1))
        self.register_buffer("place", torch.zeros(1, dtype=torch.long))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.encoder(x)
        key = F.normalize(hidden.detach() + 0.1, dim=1)
        query = F.normalize(hidden, dim=1)
        logits = torch.cat([(query * key).sum(1, keepdim=True), query @ self.queue.clone().T], 1) / 0.2
        with torch.no_grad():
            at = int(self.place)
            self.queue[at : at + len(key)] = key
            self.place[0] = (at + len(key)) % 48
        return self.head(hidden), F.cross_entropy(logits, torch.zeros(len(x), dtype=torch.long))


class Spectral(Parts):
    """Power iteration in every forward: its vectors are buffers on which the weights depend."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(spectral_norm(nn.Linear(6, 8)), nn.Tanh(), spectral_norm(nn.Linear(8, 3)))
        for layer in (self.model[0], self.model[2]):
            for _, buffer in layer.named_buffers():
                buffer.copy_(F.normalize(torch.randn_like(buffer), dim=0))


class Lazy(Parts):
    """Layers that learn their sizes from the first batch."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.Tanh(), nn.LazyLinear(3))


KINDS = [Parts, Head, Temperature, Running, Plain, Momentum, Criterion, Queue, Spectral]


def pair(kind: type[Parts]) -> tuple[Parts, Parts]:
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        made.append(kind().train())
    return made[0], made[1]


def loop(parts: Parts, losses: int, estimator=Auto, *, rate: float = 1e-2, **settings) -> Bilevel:
    torch.manual_seed(5)
    m = LossTransformer(losses, width=8, heads=2, feedforward=8, scale_hidden=8, start="random")
    return Bilevel(parts.model, m, torch.optim.SGD(m.parameters(), rate), estimator=estimator(), **settings)


def step(bilevel: Bilevel, compute, **settings):
    torch.manual_seed(7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # how exact an estimator is does not matter here
        return bilevel.backward(compute, **settings)


def truth(parts: Parts, losses: int, a: torch.Tensor, pieces: int = 1) -> torch.Tensor:
    """One ordinary step of the weighted sum; returns the state of the generator after it."""
    torch.manual_seed(7)
    for _ in range(pieces):
        found = parts.losses()[:losses]
        sum(weight.to(loss) * loss / pieces for weight, loss in zip(a, found, strict=True)).backward()
    return torch.get_rng_state()


def leaves(parts: Parts) -> dict[str, torch.Tensor]:
    return dict(parts.named_parameters())


def assert_same(parts: Parts, other: Parts, **tolerance) -> None:
    tolerance = tolerance or {"rtol": 1e-4, "atol": 1e-6}
    for name, leaf in leaves(parts).items():
        expected = leaves(other)[name].grad
        assert (leaf.grad is None) == (expected is None), name
        if expected is not None:
            torch.testing.assert_close(leaf.grad, expected, **tolerance, msg=lambda text, name=name: f"{name}: {text}")
    buffers, others = held(parts), held(other)
    assert list(buffers) == list(others)
    for name, buffer in buffers.items():
        torch.testing.assert_close(
            buffer, others[name], rtol=1e-6, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}"
        )


def held(parts: Parts) -> dict[str, torch.Tensor]:
    """Return the buffers, and the state in plain attributes of a `_Plain`."""
    found, model = (
        dict(parts.named_buffers()) | {f"{name} itself": p for name, p in parts.named_parameters()},
        parts.model,
    )
    if isinstance(model, _Plain):
        found |= {"mean": model.mean, "added": model.added, "new": model.means["new"], "old": model.means["old"][0]}
        found |= {f"recent {place}": each for place, each in enumerate(model.recent)}
        later = [model.calls, model.warm, hasattr(model, "first")]
        later += [float(torch.rand((), generator=model.draws)), model.numbers[0].random(), model.numbers[1].random()]
        found["numbers"] = torch.tensor([float(each) for each in later])
    if isinstance(model, _Objects):
        assert model.seen.meter is model.meter
        assert model.meter.above is model.meter
        found["numbers"] = model.numbers()
    if "criterion" in parts.others:
        found["calls"] = torch.tensor(parts.others["criterion"].calls)
    return found


@pytest.mark.parametrize("outer", [False, True])
@pytest.mark.parametrize("losses", LOSSES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kind", KINDS)
def test_one_call_leaves_what_the_backward_of_the_weighted_sum_leaves(kind, estimator, losses, outer):
    parts, plain = pair(kind)
    if kind is Spectral and estimator is ForwardMode and outer:
        pytest.skip("torch has no forward mode for an operation of spectral_norm")
    result = step(loop(parts, losses, estimator), lambda: parts.losses()[:losses], outer=outer)
    state = torch.get_rng_state()
    assert (result.outer is not None) == outer
    assert torch.equal(truth(plain, losses, result.sensitivities), state)
    assert_same(parts, plain)


@pytest.mark.parametrize("settings", [{"retain_graph": False}, {"part": True}, {"held_out": True}, {"pieces": 3}])
@pytest.mark.parametrize("losses", [2, 4])
@pytest.mark.parametrize("kind", [Head, Running, Plain, Objects, Momentum, Criterion, Queue])
def test_so_it_is_in_every_kind_of_outer_step(kind, losses, settings):
    parts, plain = pair(kind)
    pieces = settings.get("pieces", 1)

    def compute() -> list[torch.Tensor]:
        return parts.losses()[:losses]

    asked = {"outer_part": compute} if "part" in settings else {"primary": compute} if "held_out" in settings else {}
    bilevel = loop(parts, losses, retain_graph=settings.get("retain_graph", True))
    result = step(bilevel, [compute] * pieces if pieces > 1 else compute, outer=True, **asked)
    truth(plain, losses, result.sensitivities, pieces)
    assert_same(parts, plain)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_state_in_objects_moves_once(estimator):
    parts, plain = pair(Objects)
    bilevel = loop(parts, 4, Auto if estimator is ForwardMode else estimator)  # weight_norm has no forward mode
    for _ in range(2):
        result = step(bilevel, parts.losses, outer=True)
        truth(plain, 4, result.sensitivities)
    assert_same(parts, plain)


@pytest.mark.parametrize("outer", [False, True])
@pytest.mark.parametrize(("pieces", "retain_graph"), [(1, True), (1, False), (2, True)])
def test_lazy_layers_are_filled_in_once(pieces, retain_graph, outer):
    parts, plain = pair(Lazy)
    compute = [lambda: parts.losses()[:2]] * pieces if pieces > 1 else lambda: parts.losses()[:2]
    result = step(loop(parts, 2, retain_graph=retain_graph), compute, outer=outer)
    truth(plain, 2, result.sensitivities, pieces)
    assert_same(parts, plain)


@pytest.mark.parametrize("losses", LOSSES)
def test_hooks_are_called_once_with_the_whole_gradient(losses):
    parts, plain = pair(Head)
    calls: dict[str, list[tuple[str, torch.Tensor]]] = {name: [] for name in leaves(parts)}
    for name, leaf in leaves(parts).items():
        leaf.register_hook(lambda g, name=name: calls[name].append(("gradient", g.clone())))
        leaf.register_post_accumulate_grad_hook(lambda p, name=name: calls[name].append(("after", p.grad.clone())))
    result = step(loop(parts, losses), lambda: parts.losses()[:losses], outer=True)
    truth(plain, losses, result.sensitivities)
    for name, leaf in leaves(plain).items():
        assert [kind for kind, _ in calls[name]] == ["gradient", "after"], name
        for _, seen in calls[name]:
            torch.testing.assert_close(seen, leaf.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("losses", LOSSES)
def test_a_hook_may_change_the_gradient(losses):
    parts, plain = pair(Parts)
    for each in (parts, plain):
        for leaf in leaves(each).values():
            leaf.register_hook(lambda g: g.clamp(-0.01, 0.01))
    result = step(loop(parts, losses), lambda: parts.losses()[:losses], outer=True)
    truth(plain, losses, result.sensitivities)
    assert_same(parts, plain)


@pytest.mark.parametrize("losses", LOSSES)
@pytest.mark.parametrize("outer", [False, True])
def test_an_optimiser_that_steps_in_the_backward_steps_once(outer, losses):
    parts, plain = pair(Head)
    for each in (parts, plain):
        for leaf in leaves(each).values():
            optimizer = torch.optim.SGD([leaf], 0.1)

            def move(p, optimizer=optimizer) -> None:
                optimizer.step()
                optimizer.zero_grad()

            leaf.register_post_accumulate_grad_hook(move)
    result = step(loop(parts, losses), lambda: parts.losses()[:losses], outer=outer)
    truth(plain, losses, result.sensitivities)
    for name, leaf in leaves(parts).items():
        torch.testing.assert_close(leaf, leaves(plain)[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("losses", LOSSES)
def test_gradients_are_added_to_what_is_there(losses):
    parts, plain = pair(Head)
    for each in (parts, plain):
        for leaf in leaves(each).values():
            leaf.grad = torch.full_like(leaf, 0.5)
    result = step(loop(parts, losses), lambda: parts.losses()[:losses], outer=True)
    truth(plain, losses, result.sensitivities)
    assert_same(parts, plain)


@pytest.mark.parametrize("losses", LOSSES)
def test_layers_are_frozen_and_unfrozen_while_the_loop_runs(losses):
    parts, plain = pair(Head)
    parts.model[3].requires_grad_(False)
    bilevel = loop(parts, losses)
    for frozen in (0, 3, None):
        for each in (parts, plain):
            each.zero_grad()
            for place in (0, 3):
                each.model[place].requires_grad_(place != frozen)
        result = step(bilevel, lambda: parts.losses()[:losses], outer=True)
        truth(plain, losses, result.sensitivities)
        assert_same(parts, plain)


@pytest.mark.parametrize("losses", LOSSES)
def test_weights_that_are_added_later_are_trained(losses):
    torch.manual_seed(0)
    parts = Adapters()
    bilevel = loop(parts, losses)
    step(bilevel, lambda: parts.losses()[:losses], outer=True)
    parts.zero_grad()
    parts.extend()
    plain = copy.deepcopy(parts)
    result = step(bilevel, lambda: parts.losses()[:losses], outer=True)
    truth(plain, losses, result.sensitivities)
    assert_same(parts, plain)


@pytest.mark.parametrize("kind", ["heads", "last_block"])
@pytest.mark.parametrize("losses", [2, 4])
def test_an_outer_step_that_sees_a_part_of_the_model_leaves_the_same(losses, kind):
    parts, plain = pair(Head)
    scope = Scope(kind, modules=[parts.model[0]])
    result = step(loop(parts, losses, scope=scope), lambda: parts.losses()[:losses], outer=True)
    truth(plain, losses, result.sensitivities)
    assert_same(parts, plain)


class Sparse(Parts):
    """Words with sparse gradients."""

    sparse = True

    def __init__(self) -> None:
        super().__init__()
        self.words = torch.randint(0, 20, (12, 4))
        self.model = nn.Sequential(nn.Embedding(20, 8, sparse=self.sparse), nn.Flatten(), nn.Linear(32, 3))

    def losses(self) -> list[torch.Tensor]:
        return self.made_of(self.model(self.words))


class Dense(Sparse):
    sparse = False


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("losses", LOSSES)
def test_sparse_gradients_stay_sparse_and_give_the_same_alignment(losses, estimator):
    (parts, plain), (dense, _) = pair(Sparse), pair(Dense)
    result = step(loop(parts, losses, estimator), lambda: parts.losses()[:losses], outer=True)
    other = step(loop(dense, losses, estimator), lambda: dense.losses()[:losses], outer=True)
    torch.testing.assert_close(result.outer.products, other.outer.products, rtol=1e-3, atol=1e-6)
    truth(plain, losses, result.sensitivities)
    found, expected = parts.model[0].weight.grad, plain.model[0].weight.grad
    assert found.is_sparse
    torch.testing.assert_close(found.to_dense(), expected.to_dense(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("pieces", [1, 2])
def test_sparse_gradients_add_up_over_micro_batches(pieces):
    parts, plain = pair(Sparse)
    result = step(loop(parts, 2, PerTask), [lambda: parts.losses()[:2]] * pieces, outer=True)
    truth(plain, 2, result.sensitivities, pieces)
    torch.testing.assert_close(parts.model[0].weight.grad.to_dense(), plain.model[0].weight.grad.to_dense())


class Weighs(GradientCombiner):
    """A rule of gradients that multiplies them by 2, 3, 4, ..."""

    def from_gradients(self, losses, rows):
        a = torch.arange(2.0, 2 + len(losses))
        return [
            sum(w * part for w, part in zip(a, column, strict=True) if part is not None)
            if any(part is not None for part in column)
            else None
            for column in zip(*rows, strict=True)
        ], a


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("kind", [Head, Running, Plain, Criterion, Queue])
def test_a_rule_of_gradients_leaves_the_weighted_sum_everywhere(kind, pieces):
    parts, plain = pair(kind)
    seen: list[str] = []
    for name, leaf in leaves(parts).items():
        leaf.register_hook(lambda g, name=name: seen.append(name))
    bilevel = Bilevel(parts.model, Weighs(["a", "b", "c"]))
    result = step(bilevel, [lambda: parts.losses()[:3]] * pieces)
    truth(plain, 3, result.sensitivities, pieces)
    assert_same(parts, plain)
    assert sorted(seen) == sorted(name for name, leaf in leaves(parts).items() if leaf.grad is not None)


def test_a_rule_of_gradients_refuses_sparse_ones_by_name():
    parts, _ = pair(Sparse)
    with pytest.raises(MeltrError, match="sparse=True"):
        step(Bilevel(parts.model, Weighs(["a", "b"])), lambda: parts.losses()[:2])


@pytest.mark.parametrize("losses", LOSSES)
def test_a_gradient_scaler_scales_every_leaf(losses):
    parts, plain = pair(Head)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    result = step(loop(parts, losses, setup=Setup(scaler=scaler)), lambda: parts.losses()[:losses], outer=True)
    truth(plain, losses, 8.0 * result.sensitivities)
    assert_same(parts, plain)


@pytest.mark.parametrize("estimator", [Auto, OneSidedDifference, ForwardMode])
@pytest.mark.parametrize("kind", [Queue, Spectral])
def test_an_evaluation_again_starts_from_the_buffers_of_the_first(kind, estimator):
    """The loss depends on buffers that its forward moves; the truth is one backward per task."""
    if kind is Spectral and estimator is ForwardMode:
        pytest.skip("torch has no forward mode for an operation of spectral_norm")
    (parts, other) = pair(kind)
    found = step(loop(parts, 4, estimator, gamma=0.0), parts.losses, outer=True).outer.products
    exact = step(loop(other, 4, PerTask, gamma=0.0), other.losses, outer=True).outer.products
    assert float((found - exact).norm() / exact.norm()) <= 1e-2


@pytest.mark.parametrize("estimator", [ForwardMode, CentralDifference])
def test_estimators_see_a_head_beside_the_model(estimator):
    products = {}
    for each in (PerTask, estimator):
        parts, _ = pair(Head)
        given = [*parts.model.parameters(), *parts.others["head"].parameters()]
        bilevel = loop(parts, 4, each, gamma=0.0, parameters=given)
        products[each] = step(bilevel, parts.losses, outer=True).outer.products
    torch.testing.assert_close(products[estimator], products[PerTask], rtol=5e-3, atol=1e-6)


@pytest.mark.parametrize("estimator", [ForwardMode, PerTask, OneSidedDifference])
def test_losses_may_map_over_the_weights_of_a_module_beside_the_model(estimator):
    """An ensemble of frozen critics by ``vmap``: the gradients are those of a loop over the critics."""
    torch.manual_seed(0)
    model, critic = nn.Linear(3, 3).double(), nn.Linear(3, 1).double().requires_grad_(False)
    own = dict(critic.named_parameters())
    many = {name: torch.randn(4, *each.shape, dtype=each.dtype) for name, each in own.items()}
    x = torch.randn(5, 3, dtype=torch.float64)

    def mapped(hidden):
        judge = lambda weights: torch.func.functional_call(critic, weights, (hidden,)).square().mean()  # noqa: E731
        return torch.func.vmap(judge)(many).mean()

    def looped(hidden):
        single = [(hidden @ many["weight"][i].T + many["bias"][i]).square().mean() for i in range(4)]
        return torch.stack(single).mean()

    found = []
    for second in (mapped, looped):
        m = LossTransformer(("a", "b"), width=8, heads=2).double()
        m.load_state_dict(found[0][0] if found else m.state_dict())
        state = {name: each.clone() for name, each in m.state_dict().items()}
        bilevel = Bilevel(model, m, torch.optim.SGD(m.parameters(), 0.1), estimator=estimator())
        products = []
        for _ in range(3):
            model.zero_grad()
            result = bilevel.backward(lambda second=second: [model(x).square().mean(), second(model(x))], outer=True)
            products.append(result.outer.products)
        found.append((state, products, [each.grad.clone() for each in model.parameters()]))
    for one, other in zip(found[0][1] + found[0][2], found[1][1] + found[1][2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-10)
    assert all(dict(critic.named_parameters())[name] is each for name, each in own.items())
