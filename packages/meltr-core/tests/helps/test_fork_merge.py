"""ForkMerge: lambda against all mixtures, one branch against a plain run, and branches that harm."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from meltr.helps.fork_merge import GRID, ForkMerge, best_shares
from meltr.helps.lanes import Lane, common, lanes_of
from meltr.helps.made import made
from meltr.helps.methods import METHODS
from meltr.helps.trial import train


@pytest.fixture(scope="module")
def bed():
    """Return a bed whose helper helps."""
    return dataclasses.replace(made("shown", [0, 1, 2, 3]), epochs=4)


def test_two_equal_branches_are_a_plain_run(bed):
    """Equal networks and optimiser states are their own mean, so merging them changes nothing."""
    found = ForkMerge(common((1.0, 1.0)), merges=2).run(bed)
    assert found.last.tolist() == train(bed, METHODS["sum"]).last
    assert found.weights.tolist() == [[1.0, 1.0]] * 4


def test_the_share_of_a_second_branch_is_the_best_of_the_grid(bed):
    lanes = lanes_of(bed, common((0.0, 3.0)))
    for lane in lanes:
        lane.train(0, 2)
    found, losses = best_shares(bed, lanes), []
    for share in (0.0, *GRID, 1.0):
        mixed = [
            (1 - share) * first + share * second
            for first, second in zip(*(lane.network.parameters() for lane in lanes), strict=True)
        ]
        network = bed.network()
        with torch.no_grad():
            for own, value in zip(network.parameters(), mixed, strict=True):
                own.copy_(value)
            losses.append(bed.held_out_loss(network))
    lowest = torch.stack(losses).argmin(0)
    assert found[1].tolist() == [(0.0, *GRID, 1.0)[place] for place in lowest.tolist()]
    assert 0 < found[1].mean() < 1, "no mixture was best, so the test does not see the grid"


def test_shares_of_three_branches_are_a_mean_no_worse_than_any_branch(bed):
    lanes = lanes_of(bed, common((0.0, 1.0, 3.0)))
    for lane in lanes:
        lane.train(0, 1)
    shares = best_shares(bed, lanes)
    assert shares.sum(0).tolist() == pytest.approx([1.0] * 4)
    assert (shares >= 0).all()
    merged = Lane(bed, lanes[0].weights)
    merged.merge(lanes, shares)
    merged.look()
    assert (merged.now <= torch.stack([lane.now for lane in lanes]).min(0).values).all()


@pytest.mark.parametrize("broken", [0, 1])
def test_a_branch_that_diverged_gets_no_share(bed, broken):
    lanes = lanes_of(bed, common((0.0, 1.0)))
    for lane in lanes:
        lane.train(0, 1)
    with torch.no_grad():
        lanes[broken].network.weights[0].fill_(torch.nan)
    lanes[broken].look()
    assert best_shares(bed, lanes)[broken].tolist() == [0.0] * 4
    merged = Lane(bed, lanes[0].weights)
    merged.merge(lanes, best_shares(bed, lanes))
    for mine, theirs in zip(merged.network.parameters(), lanes[1 - broken].network.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_what_a_harmful_branch_did_is_undone_at_every_merge():
    """Where the helper hurts, the result is near that of the primary loss alone; after one branch only it would not."""
    bed = made("contrary", [0, 1, 2, 3])
    primary, plain, merged = (train(bed, METHODS[name]) for name in ("primary", "sum", "forkmerge"))
    means = [sum(each.test) / 4 for each in (primary, merged, plain)]
    assert means[1] < means[0] + 0.1 * (means[2] - means[0])
    assert merged.weights[1] < 0.2


def test_steps_are_those_of_all_branches():
    assert METHODS["forkmerge"].search.steps(5) == 2.0
    assert METHODS["forkmerge, three"].search.steps(1) == 3.0
