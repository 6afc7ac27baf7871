"""Races of task weights: who wins, that winners go on as if nothing had happened, and what a race costs."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from meltr.helps import lanes
from meltr.helps.beds import Bed
from meltr.helps.lanes import Lane
from meltr.helps.made import made
from meltr.helps.methods import METHODS
from meltr.helps.race import Race, Round
from meltr.helps.trial import train


@pytest.fixture(scope="module")
def found():
    """Return a short bed, the trials of its two candidates, and that of their race."""
    bed = dataclasses.replace(made("foreign", [0, 1, 2, 3]), epochs=6)
    return bed, *(train(bed, METHODS[name]) for name in ("primary", "sum", "race, two, 1/3"))


def test_the_winner_of_every_seed_is_the_whole_run_of_its_weights(found):
    """A run that was chosen and moved in the middle ends where the same run ends that nobody touched."""
    _, primary, plain, raced = found
    chosen = round(raced.weights[1] * 4)
    places = [place for place in range(4) if raced.test[place] == primary.test[place]]
    assert len(places) == 4 - chosen
    assert 0 < chosen < 4, "the bed must have seeds of both kinds, or nothing is moved"
    for place in range(4):
        one = primary if place in places else plain
        assert (raced.test[place], raced.last[place]) == (one.test[place], one.last[place])
        assert raced.validation[place] == one.validation[place]


def test_the_lower_held_out_loss_wins(found):
    bed, *_ = found
    candidates = METHODS["race, two, 1/3"].search.candidates(1)
    winner = METHODS["race, two, 1/3"].search.run(bed)
    runs = [Lane(bed, torch.tensor(weights).expand(4, -1)) for weights in candidates]
    for lane in runs:
        lane.train(0, 2)  # a third of six epochs
    lower = runs[1].held_out < runs[0].held_out
    assert winner.weights[:, 1].tolist() == lower.float().tolist()


@pytest.mark.parametrize(
    ("rounds", "steps"),
    [
        ([], 3.0),  # all three to the end
        ([Round(0.25)], 3 * 0.25 + 0.75),
        ([Round(0.25, keep=2), Round(0.5)], 3 * 0.25 + 2 * 0.25 + 0.5),
    ],
)
def test_steps_of_a_race(rounds, steps):
    contest = Race(lanes.common((0.0, 1.0, 3.0)), rounds)
    assert contest.steps(auxiliary=2) == pytest.approx(steps)
    epochs = []

    class Counted(Bed):
        def batches(self, epoch, order=0):
            epochs.append(epoch)
            return iter(())

    bed = made("random", [5, 6])
    counted = Counted(**{each.name: getattr(bed, each.name) for each in dataclasses.fields(bed)})
    contest.run(dataclasses.replace(counted, epochs=4))
    assert len(epochs) / 4 == pytest.approx(steps)


def test_candidates():
    assert lanes.primary_or_sum(2) == [[1, 0, 0], [1, 1, 1]]
    assert lanes.each_alone((1.0, 3.0))(1) == [[1, 0], [1, 1], [1, 3]]  # with one helper the sum is one of them
    assert lanes.one_helper((1.0, 3.0))(1) == [[1, 3]]
    assert lanes.one_helper((1.0, 3.0))(2) == [[1, 1, 0], [1, 0, 1], [1, 3, 0], [1, 0, 3]]
    assert lanes.each_alone((0.5,))(2) == [[1, 0, 0], [1, 1, 1], [1, 0.5, 0], [1, 0, 0.5]]
