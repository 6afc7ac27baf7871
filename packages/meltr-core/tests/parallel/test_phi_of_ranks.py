"""A seed per process: all start from the combiner of rank 0, and phi stays the same in all, bit for bit."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from meltr import Bilevel, LossTransformer
from meltr.parallel.ranks import Ranks
from ranks_helper import run_ranks


def train(ranks: Ranks, first: str) -> dict[str, torch.Tensor]:
    """Return phi of this process before and after 20 steps of a user's loop under DistributedDataParallel."""
    torch.manual_seed(ranks.rank)  # the mistake, or the intention: data, weights and phi differ
    model = DistributedDataParallel(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)))
    if first == "compiled":
        model = torch.compile(model, backend="eager")
    combiner = LossTransformer(3, width=8, heads=2, feedforward=8, scale_hidden=8, dropout=0.1, start="random")
    before = torch.cat([p.detach().flatten().clone() for p in combiner.parameters()])
    bilevel = Bilevel(model, combiner, torch.optim.Adam(combiner.parameters(), 0.01), every=2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def losses(x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        logits = model(x)
        return [F.cross_entropy(logits, y), logits.square().mean(), logits.abs().mean()]

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(6, 4), torch.randint(3, (6,))

    if first == "outer_step":
        one, two = batch(), batch()
        bilevel.outer_step(lambda: losses(*one), lambda: losses(*two))
    for _ in range(20):
        x, y = batch()
        optimizer.zero_grad()
        bilevel.backward(lambda x=x, y=y: losses(x, y))
        optimizer.step()
    after = torch.cat([p.detach().flatten() for p in combiner.parameters()])
    return {"before": before, "after": after, "outer_steps": torch.tensor(bilevel.outer_steps)}


def train_both(ranks: Ranks) -> dict[str, dict[str, torch.Tensor]]:
    """Return what `train` finds, with either method called first, and with a compiled wrapper."""
    return {first: train(ranks, first) for first in ("backward", "outer_step", "compiled")}


def test_phi_is_the_same_in_all_processes():
    results = [ended.result for ended in run_ranks(train_both)]
    for first, extra in (("backward", 0), ("outer_step", 1), ("compiled", 0)):
        one, two = (result[first] for result in results)
        assert not torch.equal(one["before"], two["before"])
        assert torch.equal(one["after"], two["after"])
        assert (one["after"] - one["before"]).norm() > 1e-3
        assert int(one["outer_steps"]) == 9 + extra
