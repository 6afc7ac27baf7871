"""A loop that is killed and resumed from `Bilevel.state_dict` ends with the same bits."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from meltr import Bilevel, LinearCombiner, LossTransformer, UserError
from meltr.combiners.famo import Famo

STEPS, CUT = 11, 5


def transformer():
    return LossTransformer(3, width=8, heads=2, feedforward=8, scale_hidden=8, dropout=0.1, start="random")


def famo():
    return Famo(3)


class Loop:
    """A user's loop with dropout, Adam for both optimisers, and a schedule of the outer one."""

    def __init__(self, make) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3))
        combiner = make()
        self.optimizer = torch.optim.Adam(self.model.parameters(), 0.01)
        outer = torch.optim.Adam(combiner.parameters(), 0.01)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(outer, 0.9)
        self.bilevel = Bilevel(self.model, combiner, outer, every=2)
        self.parts = {
            "model": self.model,
            "optimizer": self.optimizer,
            "bilevel": self.bilevel,
            "scheduler": self.scheduler,
        }

    def run(self, start: int, stop: int) -> None:
        for step in range(start, stop):
            torch.manual_seed(100 + step)
            x, y = torch.randn(8, 4), torch.randint(3, (8,))
            self.optimizer.zero_grad()
            result = self.bilevel.backward(lambda x=x, y=y: self.losses(x, y))
            self.optimizer.step()
            if result.outer is not None:
                self.scheduler.step()

    def losses(self, x, y) -> dict[str, torch.Tensor]:
        logits = self.model(x)
        return {"ce": F.cross_entropy(logits, y), "size": logits.square().mean(), "flat": logits.softmax(1).max()}

    def saved(self) -> io.BytesIO:
        file = io.BytesIO()
        torch.save({name: part.state_dict() for name, part in self.parts.items()}, file)
        file.seek(0)
        return file

    def load(self, file: io.BytesIO) -> None:
        for name, state in torch.load(file, weights_only=True).items():
            self.parts[name].load_state_dict(state)

    def bits(self) -> list[torch.Tensor]:
        return [*self.model.state_dict().values(), *self.bilevel.combiner.state_dict().values()]


@pytest.mark.parametrize("make", [transformer, famo])
@pytest.mark.parametrize("cut", [CUT, CUT + 1])
def test_killed_and_resumed_a_loop_ends_with_the_same_bits(make, cut):
    whole, killed = Loop(make), Loop(make)
    start = [each.clone() for each in whole.bits()]
    whole.run(0, STEPS)
    killed.run(0, cut)
    file = killed.saved()
    killed.run(cut, cut + 1)  # is lost
    resumed = Loop(make)
    resumed.load(file)
    resumed.run(cut, STEPS)
    assert all(torch.equal(*pair) for pair in zip(whole.bits(), resumed.bits(), strict=True))
    assert sum(torch.equal(*pair) for pair in zip(whole.bits(), start, strict=True)) < len(start) / 2
    assert (resumed.bilevel.steps, resumed.bilevel.outer_steps) == (whole.bilevel.steps, whole.bilevel.outer_steps)
    assert resumed.bilevel.estimator.chosen == whole.bilevel.estimator.chosen


def test_a_state_without_phi_loads_as_before():
    loop = Loop(transformer)
    loop.run(0, 3)
    before = [each.clone() for each in loop.bits()]
    old = {"steps": 8, "outer_steps": 4, "estimator": loop.bilevel.estimator.state_dict()}
    loop.bilevel.load_state_dict(old)
    assert (loop.bilevel.steps, loop.bilevel.outer_steps) == (8, 4)
    assert all(torch.equal(*pair) for pair in zip(loop.bits(), before, strict=True))


def test_the_progress_holds_no_tensors():
    """A program that saves the combiner itself does not save it twice."""
    loop = Loop(transformer)
    loop.run(0, 3)
    state = loop.bilevel.progress.state_dict()
    assert not {"combiner", "outer_optimizer"} & state.keys()
    other = Loop(transformer)
    other.bilevel.progress.load_state_dict(state)
    assert other.bilevel.state_dict()["steps"] == 3


def test_names_that_the_loop_gave_are_kept():
    loop = Loop(transformer)
    loop.run(0, 1)
    other = Loop(transformer)
    other.load(loop.saved())
    with pytest.raises(UserError, match=r"\['ce', 'size', 'flat'\]"):
        other.bilevel.backward(lambda: dict.fromkeys(("a", "b", "c"), other.model(torch.ones(1, 4)).sum()))


def test_the_state_of_other_losses_is_an_error():
    model = nn.Linear(2, 2)
    state = Bilevel(model, LinearCombiner(["ce", "size"])).state_dict()
    with pytest.raises(UserError, match=r"belongs to the losses \['ce', 'size'\], but .*\['size', 'ce'\]"):
        Bilevel(model, LinearCombiner(["size", "ce"])).load_state_dict(state)
