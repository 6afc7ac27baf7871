"""How well the g of one outer step tells the g of the population: its signs and its size, for each way to compute it.

    python benchmarks/population_g.py --case violet-tiny --steps 60 --batches 48

At several moments of a short training run with the plain sum, the weights are held. The population's g is J v with J
and v each the mean over many batches. Beside it stands what one outer step would have seen on each of those batches:
the exact g of the batch, that of half the batch, `cross` (v from one half, J from the other), and means of ten. The
row `drop in a step` is not g: it is the drop of the losses in a step of the run's own optimiser on the primary loss,
over its rate, and its momentum holds earlier gradients of the sum. A sign is right if it is the population's.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from meltr.bench.cases import pick, registry_with_cases, resolve_case
from meltr.engine.batches import slice_batch, to_device
from meltr.verify.fixed_run import FixedRun

Ways = Mapping[str, Tensor]


class Moments:
    """The ways to compute g on every batch, at the weights of one moment of the run.

    Args:
        run: The run; its reference stepper has trained to that moment.
    """

    def __init__(self, run: FixedRun) -> None:
        self.run, self.trainer = run, run.reference.trainer
        self.w = [p for p in run.model.parameters() if p.requires_grad]

    def losses(self, batch: Any, number: int) -> Tensor:
        """Return the losses of a batch, always with the same random numbers."""
        self.run.seed(10_000 + number)
        return torch.stack([loss.float() for loss in self.run.losses(batch).values()])

    def rows(self, batch: Any, number: int) -> Tensor:
        """Return the gradients of all losses, shape (T+1, parameters)."""
        losses = self.losses(batch, number)
        found = []
        for loss in losses:
            parts = torch.autograd.grad(loss, self.w, retain_graph=True, allow_unused=True)
            flat = [torch.zeros_like(p) if part is None else part for p, part in zip(self.w, parts, strict=True)]
            found.append(torch.cat([part.flatten() for part in flat]))
        return torch.stack(found)

    def drop(self, batch: Any, number: int) -> Tensor:
        """Return what a step of the run's optimiser on the primary loss takes off every loss, over its rate."""
        optimizer = self.trainer.optimizer
        weights, state = [p.detach().clone() for p in self.w], copy.deepcopy(optimizer.state_dict())
        before = self.losses(batch, number)
        optimizer.zero_grad()
        before[0].backward()
        optimizer.step()
        with torch.no_grad():
            after = self.losses(batch, number)
            for p, w in zip(self.w, weights, strict=True):
                p.copy_(w)
        optimizer.load_state_dict(state)
        optimizer.zero_grad()
        return (before.detach() - after) / optimizer.param_groups[0]["lr"]

    def measure(self, batches: Sequence[Any]) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """Return the population's g, and each way's g on every batch."""
        ways: dict[str, list[Tensor]] = defaultdict(list)
        total = None
        for number, batch in enumerate(batches):
            middle = self.run.spec.train.batch_size // 2
            one = self.rows(slice_batch(batch, 0, middle), number)
            two = self.rows(slice_batch(batch, middle, 2 * middle), number)
            whole = (one + two) / 2
            ways["one batch"].append(whole @ whole[0])
            ways["half a batch"].append(one @ one[0])
            ways["cross"].append(two @ one[0])
            ways["drop in a step"].append(self.drop(batch, number))
            total = whole if total is None else total + whole
        assert total is not None
        mean = total / len(batches)
        return mean @ mean[0], dict(ways)


def train_step(run: FixedRun, batch: Any) -> None:
    """Take an ordinary step on the sum of the losses."""
    trainer = run.reference.trainer
    trainer.bilevel.backward(lambda: run.losses(batch))
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()


def means_of_ten(values: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield the means of ten adjacent values."""
    for start in range(0, len(values) - 9, 10):
        yield torch.stack(list(values[start : start + 10])).mean(0)


def main() -> None:
    """Measure one case and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default="violet-tiny", help="a case of meltr bench")
    parser.add_argument("--set", action="append", default=[], metavar="SETTING=VALUE")
    parser.add_argument("--steps", type=int, default=60, help="training steps between two moments")
    parser.add_argument("--moments", type=int, default=3)
    parser.add_argument("--batches", type=int, default=48, help="batches per moment")
    parser.add_argument("--seeds", type=int, default=2)
    chosen = parser.parse_args()
    registry = registry_with_cases()
    right: dict[str, list[list[bool]]] = defaultdict(list)
    ratios: dict[str, list[list[float]]] = defaultdict(list)
    names: Sequence[str] = ()
    for seed in range(chosen.seeds):
        spec = resolve_case(registry, pick(registry, [chosen.case])[0], flags={"seed": seed}, sets=chosen.set)
        run = FixedRun(spec, registry)
        names = run.context.losses
        train = run.built.data.train
        stream = (batch for epoch in itertools.count() for batch in train.batches(epoch))
        for moment in range(chosen.moments):
            for _ in range(chosen.steps):
                train_step(run, to_device(next(stream), run.device))
            batches = [to_device(next(stream), run.device) for _ in range(chosen.batches)]
            truth, ways = Moments(run).measure(batches)
            for way in list(ways):
                ways[f"{way}, mean of ten"] = list(means_of_ten(ways[way]))
            for way, values in ways.items():
                for value in values:
                    right[way].append((value.sign() == truth.sign()).tolist())
                    ratios[way].append((value / truth).tolist())
            print(f"# seed {seed}, after {(moment + 1) * chosen.steps} steps: {truth.tolist()}", flush=True)
    print(f"\n| {chosen.case}: g of | " + " | ".join(names) + " |")
    print("| --- |" + " ---: |" * len(names))
    for way in sorted(right, key=lambda way: ("mean" in way, list(right).index(way))):
        cells = []
        for place in range(len(names)):
            share = statistics.mean(each[place] for each in right[way])
            cells.append(f"{share:.0%}, {statistics.median(each[place] for each in ratios[way]):.2f}")
        print(f"| {way} | " + " | ".join(cells) + " |")
    print("\nEach cell: right signs, median ratio to the population's g.")


if __name__ == "__main__":
    main()
