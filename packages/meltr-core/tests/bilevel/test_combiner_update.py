"""A step of the outer optimiser that is skipped on the device: by a fused optimiser, on the CPU here."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from meltr.bilevel.combiner_update import CombinerUpdate
from meltr.devices import Delayed
from meltr.parallel.sharing import Sharing
from meltr.torch_private import can_skip_on_device

KINDS = [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD]


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_fused_and_plain_optimisers_take_and_skip_the_same_steps(kind, clip):
    """Steps 2 and 3 have a gradient or another number that is not finite: nothing moves, not even the moments."""
    ends, lines = [], {True: [], False: []}
    for fused in (True, False):
        torch.manual_seed(0)
        module = nn.Linear(3, 2)
        optimizer = kind(module.parameters(), lr=0.1, weight_decay=0.1, fused=fused)
        assert can_skip_on_device(optimizer) == fused
        update = CombinerUpdate(module, optimizer, Sharing(), clip, lines[fused].append)
        found = []
        for step in range(5):
            gradients = [torch.full_like(p, step + 1.0) for p in module.parameters()]
            if step == 2:
                gradients[1][0] = float("inf")
            other = torch.tensor([1.0, float("nan") if step == 3 else 2.0])
            found.append(update.take(gradients, other, what=f"skipped {step}"))
            assert all(p.grad is None for p in module.parameters())
        assert [bool(each.finite) for each in found] == [True, True, False, False, True]
        assert float(found[0].norm) == pytest.approx(8**0.5)
        ends.append([p.detach().clone() for p in module.parameters()])
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    assert lines[True] == lines[False] == ["skipped 2", "skipped 3"]


def test_without_a_gradient_nothing_moves():
    module = nn.Linear(3, 2)
    before = [p.detach().clone() for p in module.parameters()]
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1, weight_decay=0.1)
    found = CombinerUpdate(module, optimizer, Sharing(), None).take([None, None], what="")
    assert float(found.norm) == 0
    assert bool(found.finite)
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))


def test_delayed_values_are_those_of_the_moment():
    values = torch.tensor([1.0, 2.0])
    late = Delayed(values)
    values.zero_()
    assert late.values() == [1.0, 2.0]
