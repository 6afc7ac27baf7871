"""Saves and loads sharded checkpoints; run by test_sharded.py under torchrun.

python -m torch.distributed.run --standalone --nproc-per-node 2 sharded_training.py save|load FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from meltr.parallel.data_parallel import Sharded
from meltr.parallel.ranks import Ranks, joined
from meltr.parallel.sharded import load_full, load_sharded, save_sharded


class Net(nn.Module):
    """Sizes that two processes cannot halve, a tied weight, buffers of several types."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5)) for _ in range(2))
        self.head = nn.Linear(5, 1)
        self.tied = self.head
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("flag", torch.tensor(True))
        self.register_buffer("short", torch.arange(3).bfloat16())

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x) * self.scale


def make(ranks: Ranks | None) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(3)
    model = Net()
    if ranks is not None:
        model.root = [Sharded.around(ranks, model, list(model.blocks))]  # in a list: not a submodule
    return model, torch.optim.AdamW(model.parameters(), 0.01)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, sharing: Sharded | None) -> None:
    x = torch.arange(20.0).reshape(4, 5).sin()

    def loss() -> list[Tensor]:
        return [model(x).square().mean()]

    (found,) = loss() if sharing is None else sharing.evaluate(loss, inner=True)
    found.backward()
    optimizer.step()
    optimizer.zero_grad()


def whole(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return every weight, buffer and state entry, whole."""
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = dict(model.state_dict())
    for parameter, state in optimizer.state.items():
        found.update({f"{names[id(parameter)]}@{key}": value for key, value in state.items()})
    return {k: v.full_tensor() if hasattr(v, "full_tensor") else v.clone() for k, v in found.items()}


def main() -> None:
    torch.set_num_threads(1)
    what, folder = sys.argv[1], Path(sys.argv[2])
    with joined("cpu") as ranks:
        model, optimizer = make(ranks)
        sharing = model.root[0]
        if what == "save":
            for _ in range(2):
                step(model, optimizer, sharing)
            save_sharded(folder / "shards", model, optimizer)
            before = whole(model, optimizer)
            step(model, optimizer, sharing)
            after = whole(model, optimizer)
            results = {"before": before, "after": after}
        else:
            load_sharded(folder / "single", model, optimizer)
            results = {"sharded": whole(model, optimizer)}
            step(model, optimizer, sharing)
            results["next"] = whole(model, optimizer)
            model, optimizer = make(ranks)
            content = torch.load(folder / "full.pt", weights_only=True)
            load_full(content["model"], model, optimizer, content["optimizer"])
            results["full"] = whole(model, optimizer)
        if ranks.is_first:
            torch.save(results, folder / f"{what}.pt")


if __name__ == "__main__":
    main()
