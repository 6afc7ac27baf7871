"""What the held-out gradient alignment g says about the helpers of the test beds, along training with the plain sum.

    python benchmarks/held_out_g.py --beds plenty,mosi --seeds 0,1,2

Every sixth step, v is the gradient of the primary loss on the validation examples, J that of all losses on the step's
batch, both over the layers that the tasks share. Printed for each loss: g_t relative to |g_0| (means over seeds and
steps), and the mean of g_t over its deviation from step to step, in the first and second quarter and the second half.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor

from meltr.helps.beds import Bed
from meltr.helps.catalogue import build

EVERY = 6
"""Steps between two measurements."""


def measured(bed: Bed) -> Tensor:
    """Train on the plain sum; return g of every measurement, shape (measurements, S, T+1)."""
    network, step, found = bed.network(), 0, []
    optimizer = torch.optim.AdamW(network.parameters(), bed.lr, weight_decay=bed.weight_decay)
    shared = network.trunk()
    for epoch in range(bed.epochs):
        for batch in bed.batches(epoch):
            losses = bed.task_losses(network, batch)
            if step % EVERY == EVERY // 2:
                v = torch.autograd.grad(bed.held_out_loss(network).sum(), shared)
                rows = [torch.autograd.grad(each.sum(), shared, retain_graph=True) for each in losses.unbind(1)]
                found.append(torch.stack([_dot(v, row) for row in rows], 1))
            optimizer.zero_grad()
            losses.sum().backward()
            optimizer.step()
            step += 1
    return torch.stack(found)


def _dot(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """Return the inner product of every seed, shape (S,)."""
    return torch.stack([(a * b).flatten(1).sum(1) for a, b in zip(one, other, strict=True)]).sum(0)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beds", default="plenty,mosi")
    parser.add_argument("--seeds", default="0,1,2")
    args = parser.parse_args()
    for name in args.beds.split(","):
        bed = build(name, [int(seed) for seed in args.seeds.split(",")])
        g = measured(bed)
        count = len(g)
        parts = (g[: count // 4], g[count // 4 : count // 2], g[count // 2 :])
        relative = [part.mean((0, 1)) / part.mean((0, 1))[0].abs() for part in parts]
        steady = [(part.mean(0) / part.std(0)).mean(0) for part in parts]
        print(f"{name}: g_t / |g_0|, and in brackets mean / deviation, early, middle, late")
        for place, loss in enumerate(bed.losses):
            cells = [f"{a[place]:6.2f} ({b[place]:5.2f})" for a, b in zip(relative, steady, strict=True)]
            print(f"  {loss:10s} {'  '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
