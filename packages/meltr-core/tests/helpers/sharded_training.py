"""Saves and loads sharded checkpoints; test_sharded.py runs it in one process and in two."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from meltr.parallel.data_parallel import Sharded
from meltr.parallel.ranks import Ranks
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


def save(ranks: Ranks, folder: str) -> dict[str, dict[str, Tensor]]:
    """Take two steps, save shards into `folder`, take a third; return everything before and after that."""
    model, optimizer = make(ranks)
    sharing = model.root[0]
    for _ in range(2):
        step(model, optimizer, sharing)
    save_sharded(Path(folder) / "shards", model, optimizer)
    before = whole(model, optimizer)
    step(model, optimizer, sharing)
    return {"before": before, "after": whole(model, optimizer)}


def load(ranks: Ranks, folder: str) -> dict[str, dict[str, Tensor]]:
    """Load what one process saved into `folder`, in shards and whole; return both and what the next step makes."""
    model, optimizer = make(ranks)
    load_sharded(Path(folder) / "single", model, optimizer)
    results = {"sharded": whole(model, optimizer)}
    step(model, optimizer, model.root[0])
    results["next"] = whole(model, optimizer)
    model, optimizer = make(ranks)
    content = torch.load(Path(folder) / "full.pt", weights_only=True)
    load_full(content["model"], model, optimizer, content["optimizer"])
    return results | {"full": whole(model, optimizer)}
