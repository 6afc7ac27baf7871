"""Models, an outer optimiser that records, and formulas that several tests of the engine share."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from meltr import Bilevel, Estimator, LossTransformer, Scheme, Setup
from meltr.bilevel.results import StepResult
from meltr.builtin import register_estimators, register_schemes
from meltr.plugins import load_object

ESTIMATORS = ["forward", "difference", "per_task", "double_backward"]
SCHEMES = [info.name for info in register_schemes() if not load_object(info.factory).takes_inner_step]
"""The schemes that choose a direction; ``primary-step`` has tests of its own."""
RELATIVE = {"forward": 1e-5, "per_task": 1e-5, "double_backward": 1e-5, "difference": 2e-3}


def in_turn(ones: Iterable[Any], others: Iterable[Any], thirds: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Return (one, other, third) for every pair of the first two, the thirds in turn.

    So each value meets each value of the other two lists, with a fraction of all combinations.
    """
    others = list(others)
    return [(one, other, thirds[(i + j) % len(thirds)]) for i, one in enumerate(ones) for j, other in enumerate(others)]


def scheme_of(name: str, **options) -> Scheme:
    """A built-in scheme by its name; of the options those that it reads."""
    kind = next(load_object(info.factory) for info in register_schemes() if info.name == name)
    return kind(**{key: value for key, value in options.items() if key in kind.__dataclass_fields__})


def estimator_of(name: str) -> Estimator:
    """A new built-in estimator by its name."""
    return next(load_object(info.factory)() for info in register_estimators() if info.name == name)


class ConvNet(nn.Module):
    """Convolutions with BatchNorm in training mode, three heads' worth of losses."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(8, 5)
        self.register_buffer("inputs", torch.randn(16, 3, 8, 8), persistent=False)
        self.register_buffer("labels", torch.randint(0, 5, (16,)), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))

    def losses(self) -> dict[str, torch.Tensor]:
        logits = self(self.inputs)
        mixed = self(self.inputs * 0.6 + self.inputs.flip(0) * 0.4)
        return {
            "ce": F.cross_entropy(logits, self.labels),
            "mixed": F.cross_entropy(mixed, self.labels.flip(0)),
            "size": logits.square().mean(),
        }


class Encoder(nn.Module):
    """A pre-norm transformer with dropout, tied input and output embeddings, a frozen and an unused parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.2, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(16, 20)
        self.out.weight = self.embed.weight
        self.frozen = nn.Parameter(torch.randn(16), requires_grad=False)
        self.unused = nn.Parameter(torch.randn(3))
        self.register_buffer("tokens", torch.randint(0, 20, (6, 7)), persistent=False)

    def losses(self) -> dict[str, torch.Tensor]:
        hidden = self.encoder(self.embed(self.tokens) + self.frozen)
        logits = self.out(hidden)
        drawn = torch.rand(self.tokens.shape) < 0.5  # a random mask: must be the same in every evaluation
        return {
            "next": F.cross_entropy(logits[:, :-1].flatten(0, 1), self.tokens[:, 1:].flatten()),
            "same": F.cross_entropy(logits.flatten(0, 1), self.tokens.flatten()),
            "masked": (F.cross_entropy(logits.transpose(1, 2), self.tokens, reduction="none") * drawn).mean(),
            "size": hidden.square().mean(),
        }


class SmoothConvNet(ConvNet):
    """Without kinks, which a difference of gradients steps over and a second derivative does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.body[2], self.body[5] = nn.SiLU(), nn.SiLU()


class SmoothEncoder(Encoder):
    """Without kinks."""

    def __init__(self) -> None:
        super().__init__()
        for layer in self.encoder.layers:
            layer.activation, layer.activation_relu_or_gelu = F.gelu, 2


def build(kind: type, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, LossTransformer]:
    torch.manual_seed(0)
    model = kind().to(dtype).train()
    count = len(model.losses())
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    torch.manual_seed(1)
    m = LossTransformer(count, width=16, heads=2, feedforward=16, scale_hidden=16, start="random").to(dtype)
    return model, m


class Recorder(torch.optim.SGD):
    """An outer optimiser that keeps the gradient and moves nothing."""

    def __init__(self, parameters) -> None:
        super().__init__(parameters, lr=0.0)

    def step(self, closure=None):
        self.seen = [p.grad for group in self.param_groups for p in group["params"]]


def take(
    model, m, estimator, *, compute=None, primary=None, outer_part=None, others=None, **settings
) -> tuple[StepResult, list, list]:
    """One call of Bilevel.backward with an outer step; returns it, phi's gradient and w's gradient."""
    recorder = Recorder(m.parameters())
    setup = Setup(**{name: settings.pop(name) for name in ("autocast", "scaler", "generators") if name in settings})
    bilevel = Bilevel(model, m, recorder, estimator=estimator_of(estimator), setup=setup, **settings)
    model.zero_grad()
    torch.manual_seed(7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = bilevel.backward(
            compute or model.losses, primary=primary, outer_part=outer_part, others=others, outer=True
        )
    return result, recorder.seen, [None if p.grad is None else p.grad.clone() for p in bilevel.parameters]


def released_way(model, m, *, gamma: float, direct_term: bool) -> list:
    """The released code's formula: a second-order graph through the whole model."""
    torch.manual_seed(7)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        losses = torch.stack(list(model.losses().values()))
    combined = m(losses)
    primary = losses[0] + gamma * (combined - losses.sum()).abs()
    parameters = [p for p in model.parameters() if p.requires_grad]
    phi = list(m.parameters())
    v = torch.autograd.grad(primary, parameters, retain_graph=True, allow_unused=True)
    u = torch.autograd.grad(combined, parameters, create_graph=True, allow_unused=True)
    inner = sum((a * b.detach()).sum() for a, b in zip(u, v, strict=True) if a is not None)
    gradients = [
        None if g is None else -g for g in torch.autograd.grad(inner, phi, retain_graph=True, allow_unused=True)
    ]
    if direct_term:
        direct = torch.autograd.grad(gamma * (m(losses.detach()) - losses.detach().sum()).abs(), phi, allow_unused=True)
        gradients = [a if b is None else b if a is None else a + b for a, b in zip(gradients, direct, strict=True)]
    return gradients


def flat(gradients) -> torch.Tensor:
    return torch.cat([torch.zeros(0, dtype=torch.float64), *(g.flatten().double() for g in gradients if g is not None)])


class Quadratic(nn.Module):
    """l_t(w) = (w - c_t)' A_t (w - c_t) / 2: J = rows A_t (w - c_t) in closed form."""

    def __init__(self, tasks: int = 3, size: int = 6, *, seed: int = 3, ridge: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        roots = torch.randn(tasks, size, size, generator=generator, dtype=torch.float64)
        self.a = roots @ roots.transpose(1, 2) / size + ridge * torch.eye(size, dtype=torch.float64)
        self.c = torch.randn(tasks, size, generator=generator, dtype=torch.float64)
        self.w = nn.Parameter(torch.randn(size, generator=generator, dtype=torch.float64))

    def losses(self) -> torch.Tensor:
        apart = self.w - self.c
        return torch.einsum("ti,tij,tj->t", apart, self.a, apart) / 2


class Tiny(nn.Module):
    """A few dozen smooth weights with BatchNorm and dropout: small enough for a whole Hessian in float64."""

    def __init__(self, *, seed: int = 0) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.BatchNorm1d(4), nn.Dropout(0.2))
        self.head = nn.Linear(4, 3)
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("inputs", torch.randn(10, 3, generator=generator), persistent=False)
        self.register_buffer("labels", torch.randint(0, 3, (10,), generator=generator), persistent=False)

    def losses(self, rows: slice = slice(None), shift: float = 0.0) -> dict[str, torch.Tensor]:
        """The losses of some of the examples; `shift` makes other examples of them."""
        hidden = self.body(self.inputs[rows] + shift)
        logits = self.head(hidden)
        return {
            "ce": F.cross_entropy(logits, self.labels[rows]),
            "wrong": F.cross_entropy(logits, self.labels[rows].roll(1)),
            "size": logits.square().mean(),
            "even": (hidden.mean(1) - 0.5).square().mean(),
        }


def tiny() -> tuple[Tiny, LossTransformer]:
    """A tiny model in float64 and a combiner whose curvature counts."""
    torch.manual_seed(0)
    model = Tiny().double()
    torch.manual_seed(4)
    m = LossTransformer(4, width=8, heads=2, feedforward=8, scale_hidden=16, start="random").double()
    with torch.no_grad():
        m.fc1.weight *= 3
        m.loss_fc1.weight *= 2
    return model, m
