"""Weights, buffers and modes that training changes, to be restored in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Kept:
    """The state of a model at one moment.

    Args:
        model: The model.
        others: Parameters outside the model.
    """

    def __init__(self, model: nn.Module, others: Sequence[Tensor] = ()) -> None:
        self._model, self._live = model, [*model.parameters(), *others]
        self._gradients = [each.grad for each in self._live]
        self._modes = [(module, module.training) for module in model.modules()]
        self._weights = [each.detach().clone() for each in self._live]
        self._buffers = {name: (each, each.detach().clone()) for name, each in model.named_buffers()}
        self.parameters = [each for each in self._live if each.requires_grad]

    def take(self, other: nn.Module) -> None:
        """Restore the values of another model of the same kind from now on."""
        count = sum(1 for _ in other.parameters())
        self._weights[:count] = [each.detach() for each in other.parameters()]
        fresh = dict(other.named_buffers())
        self._buffers = {name: (live, fresh[name].detach()) for name, (live, _) in self._buffers.items()}

    @torch.no_grad()
    def restore(self) -> None:
        """Restore weights, buffers and modes; gradients are removed. A buffer that was replaced is put back."""
        for live, saved in zip(self._live, self._weights, strict=True):
            live.copy_(saved)
            live.grad = None
        for name, (live, saved) in self._buffers.items():
            place, _, own = name.rpartition(".")
            setattr(self._model.get_submodule(place), own, live)
            live.copy_(saved)
        for module, training in self._modes:
            module.training = training

    def give_back(self) -> None:
        """Restore everything as it was, gradients too."""
        self.restore()
        for live, gradient in zip(self._live, self._gradients, strict=True):
            live.grad = gradient
