"""What a budget for outer steps costs and gives, beside a fixed number K of inner steps between them.

    python benchmarks/budget.py --beds plenty,mosi --seeds 0-5
    python benchmarks/budget.py --beds plenty,mosi --seeds 0-5 --signs

The first trains a method of ``meltr helps`` on test beds with all seeds side by side: they share one pace, whose signal
is the mean over all of them. It prints the test score (lower is better), the difference from K = 3 with its standard
error, outer steps, and their operations as a share of those of the inner steps (of a fixed K: by the price that the
rows with a budget counted). The second trains on the plain sum, every seed by itself, so that every pace sees the same
weights, and compares the average of g that an outer step would follow (``bilevel.average=0.9``) with the population's
g, at every fortieth step: right signs, and how many steps ago g was looked at last. The population's g is J v with J
and v each the mean over the batches of four epochs, as in ``population_g.py``.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from meltr.bilevel.bilevel import Bilevel
from meltr.combiners.linear import LinearCombiner
from meltr.helps import trial
from meltr.helps.beds import Batch, Bed
from meltr.helps.catalogue import build
from meltr.helps.methods import method_named
from meltr.hypergradients.estimators import PerTask

PACES: dict[str, dict[str, Any]] = {
    "K = 3": {"every": 3},
    "K = 9": {"every": 9},
    "K = 22": {"every": 22},
    "budget 50 %": {"every": 3, "budget": 0.5},
    "budget 20 %": {"every": 3, "budget": 0.2},
}


class Watched(Bilevel):
    """A `Bilevel` that is kept, so that its outer steps can be read after a trial."""

    made: list[Bilevel] = []  # noqa: RUF012

    def __init__(self, *words: Any, **settings: Any) -> None:
        super().__init__(*words, **settings)
        self.made.append(self)


def on_beds(names: Sequence[str], seeds: Sequence[int], method_name: str) -> None:
    """Print a row per bed and pace."""
    trial.Bilevel = Watched  # type: ignore[misc]
    prices: dict[str, float] = {}
    for bed in names:
        rows = {}
        for method in (method_named("sum"), *(dataclasses.replace(method_named(method_name), name=n) for n in PACES)):
            method = dataclasses.replace(method, **PACES.get(method.name, {}))
            Watched.made.clear()
            found = trial.train(build(bed, seeds), method)
            (loop,) = Watched.made
            if loop.outer_share:  # what one outer step costs, for the rows that do not count
                prices[bed] = loop.outer_share * loop.steps / loop.outer_steps
            numbers = {"outer_steps": loop.outer_steps, "share": loop.outer_share, "steps": loop.steps}
            rows[method.name] = {"test": found.test, **numbers}
            print(f"# {bed}, {method.name}: {json.dumps(rows[method.name])}", flush=True)
        for name, each in rows.items():
            share = each["share"]
            if share is None:
                share = each["outer_steps"] / each["steps"] * prices[bed]
            low = statistics.mean(each["test"])
            apart = [one - other for one, other in zip(each["test"], rows["K = 3"]["test"], strict=True)]
            spread = statistics.stdev(apart) / len(apart) ** 0.5
            against = "" if name == "K = 3" else f"{statistics.mean(apart):+.4f} ± {spread:.4f}"
            print(f"| {bed} | {name} | {low:.4f} | {against} | {each['outer_steps']:.0f} | {share:.1%} |", flush=True)


def signs(name: str, seeds: Sequence[int], moment: int = 40) -> None:
    """Print a row per pace: right signs of every loss, at every `moment`-th step, and the age of g."""
    right: dict[str, list[list[bool]]] = defaultdict(list)
    ages: dict[str, list[int]] = defaultdict(list)
    taken: dict[str, list[int]] = defaultdict(list)
    shares: list[float] = []
    losses: Sequence[str] = ()
    for seed in seeds:
        truths: dict[int, Tensor] = {}
        for pace, settings in PACES.items():
            bed = build(name, [seed])
            losses = bed.losses
            network = bed.network()
            optimizer = torch.optim.AdamW(network.parameters(), bed.lr, weight_decay=bed.weight_decay)
            combiner = LinearCombiner(losses)
            outer = torch.optim.SGD(combiner.parameters(), 0.0)  # so that every pace sees the same weights
            bilevel = Bilevel(network, combiner, outer, estimator=PerTask(), gamma=0.0, average=0.9, **settings)
            g, age, step = None, 0, 0
            for epoch in range(bed.epochs):
                for batch in bed.batches(epoch, 0):
                    optimizer.zero_grad()
                    result = bilevel.backward(
                        lambda batch=batch, bed=bed, network=network: of_batch(bed, network, batch)
                    )
                    optimizer.step()
                    step, age = step + 1, age + 1
                    if result.outer is not None:
                        g, age = result.outer.products, 0
                    if step % moment or g is None:
                        continue
                    if step not in truths:
                        truths[step] = population(bed, network)
                    right[pace].append((g.sign() == truths[step].sign()).tolist())
                    ages[pace].append(age)
            taken[pace].append(bilevel.outer_steps)
            shares += [] if bilevel.outer_share is None else [bilevel.outer_share]
        print(f"# seed {seed}: outer steps {dict(taken)}, shares {shares}", flush=True)
    print(f"\n| {name} | outer steps | steps since the last | {' | '.join(losses)} | all |")
    print("| --- | ---: | ---: |" + " ---: |" * (len(losses) + 1))
    for pace in PACES:
        found = right[pace]
        cells = [f"{statistics.mean(each[place] for each in found):.0%}" for place in range(len(losses))]
        cells.append(f"{statistics.mean(sign for each in found for sign in each):.0%}")
        ran = f"{statistics.mean(taken[pace]):.0f} | {statistics.mean(ages[pace]):.0f}"
        print(f"| {pace} | {ran} | {' | '.join(cells)} |", flush=True)


def of_batch(bed: Bed, network: nn.Module, batch: Batch) -> list[Tensor]:
    """Return the losses of the bed's only seed."""
    return list(bed.task_losses(network, batch)[0].unbind())


def population(bed: Bed, network: nn.Module) -> Tensor:
    """Return the population's g, J v with both the mean over the batches of four epochs, shape (T+1,)."""
    w, total = list(network.parameters()), None
    for batch in itertools.chain(*(bed.batches(epoch, 1) for epoch in range(4))):
        rows = []
        for loss in of_batch(bed, network, batch):
            parts = torch.autograd.grad(loss, w, retain_graph=True, allow_unused=True)
            flat = [torch.zeros_like(p) if part is None else part for p, part in zip(w, parts, strict=True)]
            rows.append(torch.cat([part.flatten() for part in flat]).double())
        total = torch.stack(rows) if total is None else total + torch.stack(rows)
    assert total is not None
    return total @ total[0]


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beds", default="plenty,mosi", help="beds of meltr helps, separated by commas")
    parser.add_argument("--method", default="meltr, shares", help="a method of meltr helps")
    parser.add_argument("--seeds", default="0-5", metavar="A-B")
    parser.add_argument("--signs", action="store_true", help="compare the signs of g instead of training")
    parser.add_argument("--paces", default=",".join(PACES), help="rows, separated by commas")
    chosen = parser.parse_args()
    for name in set(PACES) - {each.strip() for each in chosen.paces.split(",")}:
        del PACES[name]
    first, _, last = chosen.seeds.partition("-")
    seeds = range(int(first), int(last or first) + 1)
    if chosen.signs:
        for bed in chosen.beds.split(","):
            signs(bed, seeds)
    else:
        on_beds(chosen.beds.split(","), seeds, chosen.method)


if __name__ == "__main__":
    main()
