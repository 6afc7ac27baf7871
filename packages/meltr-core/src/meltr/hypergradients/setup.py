"""How the losses of a training loop are evaluated: precision, random number generators, processes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from meltr.autograd.buffers import preserved_buffers
from meltr.autograd.random_state import RandomState
from meltr.autograd.vectors import scale
from meltr.parallel.sharing import Sharing

LOW_PRECISION = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Setup:
    """How losses are evaluated.

    Args:
        autocast: Data type of an autocast context around the losses; None: no autocast.
        scaler: Gradient scaler (float16); ``.grad`` is then scaled, as `scaler.step(optimizer)` expects.
        generators: Generators that the losses use besides the global ones; extra forward passes replay them.
        sharing: How processes share the batch; None: found from the model.
    """

    autocast: torch.dtype | None = None
    scaler: torch.amp.GradScaler | None = None
    generators: Sequence[torch.Generator] = ()
    sharing: Sharing | None = None


class ModelSetup:
    """A model and how its losses are evaluated, shared by all evaluations of one training loop.

    Args:
        model: The backbone.
        setup: Precision and generators.
        sharing: How gradients and numbers are shared between processes.

    Attributes:
        losses_differentiate: True once the losses were found to differentiate by themselves (a gradient penalty): then
            evaluations without a graph build one too.
    """

    def __init__(self, model: nn.Module, setup: Setup, sharing: Sharing) -> None:
        self.losses_differentiate = False
        self.model, self.autocast, self.sharing = model, setup.autocast, sharing
        self.scaler = setup.scaler if setup.scaler is not None and setup.scaler.is_enabled() else None
        self.generators = tuple(setup.generators)
        self.devices = {parameter.device for parameter in model.parameters()}
        self.device = next(iter(self.devices), torch.device("cpu"))

    @property
    def low_precision(self) -> bool:
        """True if the losses carry the rounding errors of float16 or bfloat16."""
        return self.autocast is not None or any(p.dtype in LOW_PRECISION for p in self.model.parameters())

    def as_evaluated(self) -> AbstractContextManager[Any]:
        """Return a context in which a backward pass has the precision of its forward pass, under any autocast."""
        return torch.autocast(self.device.type, enabled=False)

    def preserved_buffers(self) -> AbstractContextManager[None]:
        """Return a context that leaves the model's buffers bit-identical."""
        return preserved_buffers(self.model)

    def random_state(self) -> RandomState:
        """Return a snapshot of all generators."""
        return RandomState(self.devices, self.generators)

    def scaled(self, seeds: Sequence[Tensor]) -> list[Tensor]:
        """Return the weights of losses times the gradient scaler's factor, if there is a scaler."""
        return list(seeds) if self.scaler is None else [self.scaler.scale(seed) for seed in seeds]

    def unscaled(self, direction: list[Tensor | None]) -> list[Tensor | None]:
        """Divide a gradient by the gradient scaler's factor, if there is a scaler."""
        return direction if self.scaler is None else scale(direction, 1.0 / self.scaler.get_scale())
