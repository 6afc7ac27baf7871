"""What an outer step sends between processes beyond ordinary training, counted, for several sizes.

    torchrun --nproc-per-node 2 benchmarks/communication.py

Counts the elements that meltr hands to all-reduce (DistributedDataParallel's own all-reduce of the inner gradient, one
element a parameter a step, is ordinary training and is not counted), and times the steps.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from meltr import Bilevel, CentralDifference, Estimator, ForwardMode, LossTransformer, PerTask, Setup
from meltr.parallel.data_parallel import DataParallel
from meltr.parallel.ranks import Ranks, joined


def losses_of(model: nn.Module, inputs: Tensor, count: int) -> Callable[[], list[Tensor]]:
    """Return a function that evaluates `count` losses from one forward."""

    def losses() -> list[Tensor]:
        hidden = model(inputs)
        return [hidden.square().mean() ** (1 / (task + 1)) + hidden.abs().mean() * task for task in range(count)]

    return losses


def measure(ranks: Ranks, *, width: int, count: int, estimator: type[Estimator], repeat: int = 7) -> str:
    """Return a row of the table for one size."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(width, width), nn.GELU()) for _ in range(4)))
    combiner = LossTransformer(count)
    sent: list[int] = []
    original = dist.all_reduce

    def counted(tensor: Tensor, *arguments: object, **options: object) -> object:
        sent.append(tensor.numel())
        return original(tensor, *arguments, **options)

    outer = torch.optim.Adam(combiner.parameters(), 1e-4)
    sharing = DataParallel(ranks, model)
    bilevel = Bilevel(model, combiner, outer, estimator=estimator(), setup=Setup(sharing=sharing))
    losses = losses_of(model, torch.randn(64, width), count)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    elements = {False: 0, True: 0}
    for turn in range(repeat + 2):
        for takes_outer in (False, True):
            model.zero_grad()
            sent.clear()
            dist.all_reduce = counted  # type: ignore[assignment]
            started = time.perf_counter()
            bilevel.backward(losses, outer=takes_outer)
            elapsed = time.perf_counter() - started
            dist.all_reduce = original
            elements[takes_outer] = sum(sent)
            if turn >= 2:
                seconds[takes_outer].append(elapsed)
    size = sum(parameter.numel() for parameter in model.parameters())
    phi = sum(parameter.numel() for parameter in combiner.parameters())
    ratio = statistics.median(b / a for a, b in zip(seconds[False], seconds[True], strict=True))
    extra = elements[True] - size - phi
    return (
        f"| {size:,} | {count} | {phi:,} | {estimator.name} | {elements[False]} | {elements[True]:,} "
        f"| d + phi + {extra} | {ratio:.2f}x |"
    )


def main() -> None:
    """Measure a few sizes."""
    torch.set_num_threads(1)
    with joined("cpu") as ranks:
        if ranks.is_first:
            print(f"torch {torch.__version__}, {ranks.size} processes, gloo, cpu")
            print("| d | losses | phi | estimator | plain step | step with an outer step | that is | time |")
            print("| --- | --- | --- | --- | --- | --- | --- | --- |")
        forward = [(64, 3), (256, 3), (512, 3), (256, 8)]
        cases = [
            *((width, count, ForwardMode) for width, count in forward),
            (256, 3, CentralDifference),
            (256, 3, PerTask),
        ]
        for width, count, estimator in cases:
            row = measure(ranks, width=width, count=count, estimator=estimator)
            if ranks.is_first:
                print(row)


if __name__ == "__main__":
    main()
