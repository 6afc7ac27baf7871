"""How far must a race of fixed weights look ahead? Races of several kinds, on the beds of ``meltr helps``.

    python benchmarks/look_ahead.py --beds shown,plenty,foreign,random --seeds 0-7 --runs 5
    python benchmarks/look_ahead.py --beds mixed --seeds 0-7 --runs 1

Every candidate is trained once to the end. A race then only reads its curves, so any number of races costs nothing
more. Printed: the mean test score of the winners minus that of the better of ``primary`` and ``sum`` (below 0: better).
"""

from __future__ import annotations

import argparse
import dataclasses

import torch
from torch import Tensor

from meltr.cli.output import table
from meltr.helps.beds import Bed
from meltr.helps.catalogue import build
from meltr.helps.race import Candidates, Lane, Round, each_alone, primary_or_sum
from meltr.seeding import derive

ROUNDS = {
    "1/6": [Round(1 / 6)],
    "1/4": [Round(1 / 4)],
    "1/3": [Round(1 / 3)],
    "1/2": [Round(1 / 2)],
    "1/4 (two go on), 1/2": [Round(1 / 4, keep=2), Round(1 / 2)],
    "at the end": [],
}

CANDIDATES: dict[str, Candidates] = {
    "primary, sum": primary_or_sum,
    "and one helper, weight 1": each_alone((1.0,)),
    "and one helper, weight 1 or 3": each_alone((1.0, 3.0)),
}

Curves = tuple[Tensor, Tensor, Tensor]
"""Lowest held-out loss so far, (epochs, seeds); best validation score, and test score there, (seeds,)."""


def main() -> None:
    """Train the candidates and print the races."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beds", default="shown,plenty,foreign,random", help="names, separated by commas")
    parser.add_argument("--seeds", default="0-7", help="first and last seed")
    parser.add_argument("--runs", type=int, default=1, help="runs per seed, of other weights and batches")
    words = parser.parse_args()
    torch.set_num_threads(1)
    first, last = map(int, words.seeds.split("-"))
    columns = {}
    for name in words.beds.split(","):
        bed = repeated(build(name, range(first, last + 1)), words.runs)
        columns[name] = races(bed)
        print(f"{name}: done", flush=True)
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


def races(bed: Bed) -> dict[tuple[str, str], float]:
    """Return the regret of every kind of race on a bed."""
    auxiliary = len(bed.losses) - 1
    curves = {tuple(weights): trained(bed, weights) for own in CANDIDATES.values() for weights in own(auxiliary)}
    reference = min(float(curves[tuple(weights)][2].mean()) for weights in primary_or_sum(auxiliary))
    return {
        (candidates, rounds): float(won([curves[tuple(w)] for w in own(auxiliary)], when).mean()) - reference
        for candidates, own in CANDIDATES.items()
        for rounds, when in ROUNDS.items()
    }


def trained(bed: Bed, weights: list[float]) -> Curves:
    """Return the curves of one candidate."""
    lane, held_out = Lane(bed, torch.tensor(weights).expand(len(bed.seeds), -1)), []
    for epoch in range(bed.epochs):
        lane.train(epoch, epoch + 1)
        held_out.append(lane.held_out)
    return torch.stack(held_out), lane.best, lane.selected


def won(curves: list[Curves], rounds: list[Round]) -> Tensor:
    """Return the test score of the winner of every seed."""
    held_out, best, test = (torch.stack(list(parts)) for parts in zip(*curves, strict=True))
    seeds = torch.arange(held_out.shape[2])
    alive = torch.arange(len(curves))[:, None].expand(-1, len(seeds))
    for each in rounds:
        until = round(each.share * held_out.shape[1])
        order = held_out[alive, until - 1, seeds].argsort(dim=0, stable=True)
        alive = alive.gather(0, order)[: each.keep]
    place = best[alive, seeds].argmin(0)
    return test[alive[place, seeds], seeds]


if __name__ == "__main__":
    main()
