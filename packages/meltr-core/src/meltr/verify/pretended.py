"""The losses on a GPU that is not there: fake tensors know shapes, types and devices, and compute nothing."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from meltr import devices
from meltr.context import RunContext
from meltr.engine.hooks import Hooks
from meltr.torch_private import (
    DispatchMode,
    buffers_of,
    fake_mode,
    map_tensors,
    needs_values,
    parameters_of,
    tree_leaves,
)

PRETENDED = torch.device("cuda", 7)
"""The last device that fake tensors can have."""

_TORCH = Path(torch.__file__).parent
_HERE = Path(__file__)
_MADE_ONCE = Path(devices.__file__)
"""What is copied to the device there is copied once."""


@dataclass(frozen=True)
class OnGpu:
    """What happened.

    Args:
        failure: The first error; empty if there is none.
        waits: Where the host waits for the device, as ``file:line: source``: it reads a number, or copies one to it.
        devices: Name of a loss -> its device.
    """

    failure: str
    waits: tuple[str, ...]
    devices: dict[str, torch.device]


def losses_on_a_gpu(hooks: Hooks, model: nn.Module, batch: Any, context: RunContext) -> OnGpu:
    """Evaluate the losses as on a GPU, on any machine: tensors on the wrong device and waits for it are found.

    The model gets fake weights and buffers meanwhile. Nothing is computed, so that the values are not known, and an
    error of a kernel is not found.

    Args:
        hooks: The adapter.
        model: The backbone, on any device.
        batch: A batch on any device.
        context: Context of the run.
    """
    seen = _Copies()
    elsewhere = replace(context, device=PRETENDED, generator=None)
    failure, losses = "", {}
    with pretending(model, batch) as (mode, given), mode, seen:
        try:
            losses = hooks.losses(model, given, elsewhere)
        except Exception as error:
            first = _first(error)
            if needs_values(first):
                seen.found.append(_place(traceback.extract_tb(first.__traceback__)))
            else:
                failure = f"{_place(traceback.extract_tb(first.__traceback__))}: {first}".strip()
    return OnGpu(failure, tuple(dict.fromkeys(seen.found)), {name: loss.device for name, loss in losses.items()})


def _first(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@contextmanager
def pretending(model: nn.Module, batch: Any, device: torch.device = PRETENDED) -> Iterator[tuple[Any, Any]]:
    """Within this context, all weights and buffers of a model are fake; yields the mode to enter, and a fake batch.

    Args:
        model: The backbone, on any device.
        batch: A batch on any device.
        device: Where the fake tensors seem to be. Backward passes need one that is there.
    """
    mode = fake_mode()
    with _moved(mode, model, device):
        yield mode, map_tensors(lambda tensor: _fake(mode, tensor, device), batch)


def _fake(mode: Any, tensor: Tensor, device: torch.device) -> Tensor:
    fake: Tensor = mode.from_tensor(tensor.detach())
    with mode:
        return fake.detach().to(device)


@contextmanager
def _moved(mode: Any, model: nn.Module, device: torch.device) -> Iterator[None]:
    made: dict[int, Tensor] = {}
    before: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def moved(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            fake = _fake(mode, tensor, device)
            made[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake
        return made[id(tensor)]

    for module in model.modules():
        for held in (parameters_of(module), buffers_of(module)):
            before.append((held, dict(held)))
            held.update({name: moved(tensor) for name, tensor in held.items() if tensor is not None})
    try:
        yield
    finally:
        for held, tensors in before:
            held.clear()
            held.update(tensors)


class _Copies(DispatchMode):
    """Notes where a tensor is copied from the host to the device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ("_to_copy", "copy_"):
            devices = [each.device.type for each in tree_leaves(args) if isinstance(each, Tensor)]
            if isinstance(result, Tensor) and result.device.type == "cuda" and "cpu" in devices:
                stack = traceback.extract_stack()
                if all(Path(each.filename) != _MADE_ONCE for each in stack):
                    self.found.append(_place(stack))
        return result


def _place(stack: traceback.StackSummary) -> str:
    """Return the innermost line that is neither torch's nor of this module."""
    own = [each for each in stack if _TORCH not in Path(each.filename).parents and Path(each.filename) != _HERE]
    if not own:
        return "?"
    return f"{own[-1].filename}:{own[-1].lineno}: {own[-1].line}"
