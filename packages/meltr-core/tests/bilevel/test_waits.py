"""Reads of single numbers: on an accelerator each of them waits for the device. Counted on the CPU, as a stand-in."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from bilevel_cases import estimator_of
from meltr import Bilevel, LossTransformer
from meltr.hypergradients.estimators.checking import CHECKS
from meltr.hypergradients.estimators.one_sided import EARLY

READS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero"}
"""Operations whose result the host needs: ``item()``, ``bool()``, ``float()`` and ``if tensor`` call the first one."""


class Reads(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ in READS
        return func(*args, **(kwargs or {}))


def reads_of(estimator: str, **settings) -> tuple[list[int], list[int]]:
    """The reads of every inner step and of every step with an outer step, after the choices and checks of the first."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4))
    m = LossTransformer(4, width=8, heads=2, feedforward=8, scale_hidden=8)
    outer = torch.optim.Adam(m.parameters(), 1e-3, fused=True)
    bilevel = Bilevel(model, m, outer, estimator=estimator_of(estimator), **settings)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    x, y = torch.randn(8, 6), torch.randint(4, (8,))

    def losses() -> list[torch.Tensor]:
        z = model(x)
        return [F.cross_entropy(z, y), F.cross_entropy(z, y.flip(0)), z.square().mean(), z.abs().mean()]

    inner, both = [], []
    for _ in range(70):
        optimizer.zero_grad()
        with Reads() as reads:
            result = bilevel.backward(losses)
        optimizer.step()
        bilevel.after_step()
        if bilevel.outer_steps > max(*CHECKS, EARLY) + 1:
            (inner if result.outer is None else both).append(reads.count)
    return inner, both


@pytest.mark.parametrize("settings", [{}, {"budget": 1.0}, {"average": 0.9}], ids=["K", "budget", "average"])
@pytest.mark.parametrize(("estimator", "most"), [("forward", 0), ("per_task", 0), ("one_sided", 1)])
def test_an_inner_step_reads_no_number_and_an_outer_step_at_most_one(estimator, most, settings):
    inner, both = reads_of(estimator, **settings)
    assert set(inner) == {0}
    assert both
    assert max(both) <= most


def test_what_is_counted_is_what_waits():
    tensor = torch.ones(())
    with Reads() as reads:
        found = [tensor.item(), bool(tensor), float(tensor), 1 if tensor > 0 else 0]
    assert reads.count == len(found)
