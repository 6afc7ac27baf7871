"""How far must a race of fixed weights look ahead? Races of several kinds, on the beds of ``meltr helps``.

    python benchmarks/look_ahead.py --beds shown,plenty,foreign,random --seeds 0-7 --runs 5
    python benchmarks/look_ahead.py --beds mixed --seeds 0-7 --runs 1
    python benchmarks/look_ahead.py --beds digits --seeds 0-7 --judge test --curves

Every candidate is trained once to the end. A race then only reads its curves, so any number of races costs nothing
more. Printed: the mean test score of the winners minus that of the better of ``primary`` and ``sum`` (below 0: better).
``--judge test`` compares on the test examples: what a larger held-out set would change, and no way to choose anything.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from meltr.cli.output import table
from meltr.helps.beds import Bed
from meltr.helps.catalogue import build
from meltr.helps.lanes import Candidates, Lane, each_alone, primary_or_sum
from meltr.helps.networks import StackedMLP
from meltr.helps.race import Round
from meltr.seeding import derive

HALVED = [Round(1 / 4, keep=2), Round(1 / 2)]

ROUNDS: dict[str, tuple[list[Round], int]] = {
    "1/6": ([Round(1 / 6)], 0),
    "1/4": ([Round(1 / 4)], 0),
    "1/3": ([Round(1 / 3)], 0),
    "1/2": ([Round(1 / 2)], 0),
    "3/4": ([Round(3 / 4)], 0),
    "1/4 (two go on), 1/2": (HALVED, 0),
    "the same, but primary and sum go to the end": (HALVED, 2),
    "at the end": ([], 0),
}
"""Rounds, and how many candidates, the first ones, they spare. Validation chooses among those that are left."""

CANDIDATES: dict[str, Candidates] = {
    "primary, sum": primary_or_sum,
    "and one helper, weight 1": each_alone((1.0,)),
    "and one helper, weight 1 or 3": each_alone((1.0, 3.0)),
}

Curves = tuple[Tensor, Tensor, Tensor]
"""Lowest loss so far of the judge, (epochs, seeds); best validation score, and test score there, (seeds,)."""

Judge = Callable[[StackedMLP], Tensor]
"""Networks -> the primary loss of every seed on the examples that decide, shape (seeds,)."""


def main() -> None:
    """Train the candidates and print the races."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beds", default="shown,plenty,foreign,random", help="names, separated by commas")
    parser.add_argument("--seeds", default="0-7", help="first and last seed")
    parser.add_argument("--runs", type=int, default=1, help="runs per seed, of other weights and batches")
    parser.add_argument("--judge", choices=["held-out", "test"], default="held-out", help="examples that decide")
    parser.add_argument("--curves", action="store_true", help="print the loss of every candidate on the way")
    words = parser.parse_args()
    torch.set_num_threads(1)
    first, last = map(int, words.seeds.split("-"))
    columns = {}
    for name in words.beds.split(","):
        bed = repeated(build(name, range(first, last + 1)), words.runs)
        curves = all_trained(bed, bed.held_out_loss if words.judge == "held-out" else partial(test_loss, bed))
        columns[name] = races(bed, curves)
        print(table(on_the_way(bed, curves), indent="") if words.curves else f"{name}: done", flush=True)
    rows = [["candidates", "compared after", *columns]]
    for candidates in CANDIDATES:
        for rounds in ROUNDS:
            cells = [f"{own[candidates, rounds]:+.4f}" for own in columns.values()]
            rows.append([candidates, rounds, *cells])
    print(table(rows, indent=""))


def repeated(bed: Bed, runs: int) -> Bed:
    """Return a bed with every seed several times: the same data, and other weights and batches from the second on."""
    seeds = [seed if run == 0 else derive(seed, "branch", run - 1) for run in range(runs) for seed in bed.seeds]
    tasks = [
        dataclasses.replace(task, targets=None if task.targets is None else torch.cat([task.targets] * runs))
        for task in bed.tasks
    ]
    return dataclasses.replace(bed, seeds=seeds, inputs=torch.cat([bed.inputs] * runs), tasks=tasks)


def all_trained(bed: Bed, judge: Judge) -> dict[tuple[float, ...], Curves]:
    """Return the curves of every candidate by its weights."""
    weights = {tuple(each) for own in CANDIDATES.values() for each in own(len(bed.losses) - 1)}
    return {each: trained(bed, each, judge) for each in sorted(weights)}


def races(bed: Bed, curves: dict[tuple[float, ...], Curves]) -> dict[tuple[str, str], float]:
    """Return the regret of every kind of race on a bed."""
    auxiliary = len(bed.losses) - 1
    reference = min(float(curves[tuple(weights)][2].mean()) for weights in primary_or_sum(auxiliary))
    return {
        (candidates, name): float(won([curves[tuple(w)] for w in own(auxiliary)], *when).mean()) - reference
        for candidates, own in CANDIDATES.items()
        for name, when in ROUNDS.items()
    }


def on_the_way(bed: Bed, curves: dict[tuple[float, ...], Curves]) -> list[list[str]]:
    """Return a row per candidate: its weights, the loss of the judge on the way, and the test score."""
    places = [round(share * bed.epochs) - 1 for share in (1 / 4, 1 / 2, 3 / 4, 1)]
    rows = [["weights: " + ", ".join(bed.losses), "1/4", "1/2", "3/4", "end", f"test {bed.metric}"]]
    for weights, (losses, _, test) in curves.items():
        cells = [f"{float(losses[place].mean()):.3f}" for place in places]
        rows.append([", ".join(f"{weight:g}" for weight in weights), *cells, f"{float(test.mean()):.4f}"])
    return rows


def test_loss(bed: Bed, network: StackedMLP) -> Tensor:
    """Return the primary loss of every seed on its test examples, shape (seeds,)."""
    first = bed.training + bed.validation
    rows = torch.arange(first, bed.inputs.shape[1]).expand(len(bed.seeds), -1)
    return bed.tasks[0].loss(network(bed.inputs[:, first:]), rows)


def trained(bed: Bed, weights: tuple[float, ...], judge: Judge) -> Curves:
    """Return the curves of one candidate."""
    lane, losses = Lane(bed, torch.tensor(weights).expand(len(bed.seeds), -1)), []
    for epoch in range(bed.epochs):
        lane.train(epoch, epoch + 1)
        with torch.no_grad():
            losses.append(judge(lane.network))
    return torch.stack(losses).cummin(0).values, lane.best, lane.selected


def won(curves: list[Curves], rounds: list[Round], spared: int = 0) -> Tensor:
    """Return the test score of the winner of every seed."""
    losses, best, test = (torch.stack(list(parts)) for parts in zip(*curves, strict=True))
    seeds = torch.arange(losses.shape[2])
    every = torch.arange(len(curves))[:, None].expand(-1, len(seeds))
    alive = every[spared:]
    for each in rounds:
        until = round(each.share * losses.shape[1])
        order = losses[alive, until - 1, seeds].argsort(dim=0, stable=True)
        alive = alive.gather(0, order)[: each.keep]
    alive = torch.cat([every[:spared], alive])
    place = best[alive, seeds].argmin(0)
    return test[alive[place, seeds], seeds]


if __name__ == "__main__":
    main()
