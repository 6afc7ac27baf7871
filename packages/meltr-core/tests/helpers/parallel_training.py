"""Trains a small transformer for a few steps in one way of sharing the batch; test_parallel.py runs it."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from bilevel_cases import estimator_of, scheme_of
from meltr import Bilevel, LossTransformer, Setup
from meltr.parallel.data_parallel import DataParallel, Sharded
from meltr.parallel.gather import gather
from meltr.parallel.ranks import Ranks
from meltr.parallel.sharing import Sharing

STEPS, BATCH = 4, 8

CASES = {
    "mean": {},
    "contrastive": {"contrastive": True},
    "difference": {"estimator": "difference"},
    "forward": {"estimator": "forward", "losses": 4},
    "rows": {"losses": 2},
    "per_task": {"estimator": "per_task", "losses": 4},
    "contrastive-forward": {"contrastive": True, "estimator": "forward"},
    "accumulate": {"accumulate": 2},
    "accumulate-last": {"accumulate": 2, "accumulate_weights": "last"},
    "aid-fp": {"scheme": scheme_of("aid-fp", step=0.1), "estimator": "difference"},
    "itd": {"scheme": scheme_of("itd"), "estimator": "difference"},
    "held-out": {"held_out": True},
    "primary-step": {"scheme": scheme_of("primary-step"), "estimator": "difference"},
    "primary-step-per_task": {"scheme": scheme_of("primary-step"), "estimator": "per_task", "accumulate": 2},
    "budget": {"budget": 1.0, "every": 1, "estimator": "per_task", "losses": 4, "steps": 8},  # the first come late
    "cross": {"accumulate": 2, "cross": True, "estimator": "per_task"},
}


class Towers(nn.Module):
    """Two inputs, shared blocks, heads for four losses; one parameter is never used.

    Nothing has a kink: at a ReLU's, a difference of one rounding error makes two runs part.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.classify, self.rebuild, self.project = nn.Linear(16, 3), nn.Linear(16, 6), nn.Linear(16, 8)
        self.unused = nn.Parameter(torch.ones(3))

    def encode(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(tokens)
        for block in self.blocks:
            hidden = block(hidden)
        return hidden


def losses(model: Towers, batch: dict[str, torch.Tensor], *, count: int, contrastive: bool) -> list[torch.Tensor]:
    one, two = model.encode(batch["one"]), model.encode(batch["two"])
    found = [F.cross_entropy(model.classify(one.mean(1)), batch["label"]), F.mse_loss(model.rebuild(two), batch["one"])]
    left = F.normalize(model.project(one.mean(1)), dim=1)
    right = F.normalize(model.project(two.mean(1)), dim=1)
    if contrastive:
        logits = gather(left) @ gather(right).T / 0.2
        found.append(F.cross_entropy(logits, torch.arange(len(logits))))
    else:
        found.append(-(left * right).sum(1).mean())
    found.append(one.square().mean())
    return found[:count]


def batch_of(number: int, *, rank: int, size: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    whole = {
        "one": torch.randn(BATCH, 5, 6, generator=generator),
        "two": torch.randn(BATCH, 5, 6, generator=generator),
        "label": torch.randint(0, 3, (BATCH,), generator=generator),
    }
    part = BATCH // size
    return {name: value[rank * part : (rank + 1) * part] for name, value in whole.items()}


def train(ranks: Ranks, parallel: str, case: str) -> dict[str, torch.Tensor]:
    """Return w and phi after all steps, every weight whole, and the products of the last outer step."""
    settings = dict(CASES[case])
    count, contrastive = settings.pop("losses", 3), settings.pop("contrastive", False)
    accumulate, held_out = settings.pop("accumulate", 1), settings.pop("held_out", False)
    cross, steps = settings.pop("cross", False), settings.pop("steps", STEPS)
    estimator, scheme = (
        estimator_of(settings.pop("estimator", "auto")),
        settings.pop("scheme", scheme_of("aid-fp-lite")),
    )
    torch.manual_seed(0)
    model = Towers()
    m = LossTransformer(count, width=16, heads=2, feedforward=16, scale_hidden=16, start="sum")
    sharing: Sharing = {
        "one": lambda: Sharing(),
        "ddp": lambda: DataParallel(ranks, model),
        "fsdp": lambda: Sharded.around(ranks, model, list(model.blocks)),
    }[parallel]()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    outer = torch.optim.SGD(m.parameters(), 0.2)
    bilevel = Bilevel(
        model, m, outer, gamma=0.1, setup=Setup(sharing=sharing), inner_optimizer=optimizer, scheme=scheme,
        estimator=estimator, **{"every": 2, **settings},
    )  # fmt: skip
    products = torch.zeros(count)
    start = torch.cat([p.detach().flatten().clone() for p in m.parameters()])
    for step in range(steps):
        size = ranks.size * accumulate
        # The halves of the joined batch are the halves of all processes.
        pieces = [batch_of(step, rank=i * ranks.size + ranks.rank, size=size) for i in range(accumulate)]
        compute = [lambda b=b: losses(model, b, count=count, contrastive=contrastive) for b in pieces]
        primary = None
        if held_out:
            other = batch_of(1000 + step, rank=ranks.rank, size=ranks.size)
            primary = lambda other=other: losses(model, other, count=1, contrastive=contrastive)  # noqa: E731
        result = bilevel.backward(compute, primary=primary, cross=cross)
        optimizer.step()
        optimizer.zero_grad()
        products = result.outer.products if result.outer else products
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    flat = torch.cat([p.detach().flatten() for p in whole])
    phi = torch.cat([p.detach().flatten() for p in m.parameters()])
    return {"w": flat, "phi": phi, "products": products.double(), "phi_moved": (phi - start).norm()}


def outer_steps_with_uneven_work(ranks: Ranks) -> list[int]:
    """Return the steps with an outer step within a budget, where rank 1 has longer sequences than rank 0."""
    torch.manual_seed(0)
    model = Towers()
    m = LossTransformer(3, width=16, heads=2, feedforward=16, scale_hidden=16)
    settings = {"setup": Setup(sharing=DataParallel(ranks, model)), "estimator": estimator_of("forward")}
    bilevel = Bilevel(model, m, torch.optim.SGD(m.parameters(), 0.05), every=1, budget=0.9, **settings)
    taken = []
    for step in range(40):
        batch = batch_of(step, rank=ranks.rank, size=ranks.size)
        for name in ("one", "two") if ranks.rank else ():
            batch[name] = batch[name].repeat(1, 4, 1)
        result = bilevel.backward(lambda batch=batch: losses(model, batch, count=3, contrastive=False))
        taken += [step] if result.outer is not None else []
    return taken


def train_all(ranks: Ranks, *names: str) -> dict[str, dict[str, torch.Tensor]]:
    """Return what `train` finds for each ``PARALLEL:CASE``."""
    found = {}
    for name in names:
        parallel, _, case = name.partition(":")
        found[name] = train(ranks, parallel, case)
    return found
