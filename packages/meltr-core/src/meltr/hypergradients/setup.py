"""How the losses of a training loop are evaluated: precision, random number generators, processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from meltr.autograd.beside import Beside
from meltr.autograd.buffers import BufferState, preserved_buffers
from meltr.autograd.random_state import RandomState
from meltr.autograd.still import Known
from meltr.autograd.trained import Trained
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
        recorded: The losses may be recorded (`meltr.autograd.graphed`): forward mode then keeps its tangents where they
            are, in memory of the size of the weights.
    """

    autocast: torch.dtype | None = None
    scaler: torch.amp.GradScaler | None = None
    generators: Sequence[torch.Generator] = ()
    sharing: Sharing | None = None
    recorded: bool = False


class ModelSetup:
    """A model and how its losses are evaluated, shared by all evaluations of one training loop.

    Args:
        model: The backbone.
        setup: Precision and generators.
        sharing: How gradients and numbers are shared between processes.

    Attributes:
        beside: Modules that the losses call and the model does not contain.
        graphs_to_check: Number of graphs in which parts are still looked for that have no gradient by chosen weights.
        trained: Which trained weights the losses change by themselves.
        losses_differentiate: True once the losses were found to differentiate by themselves (a gradient penalty): then
            evaluations without a graph build one too.
    """

    def __init__(self, model: nn.Module, setup: Setup, sharing: Sharing) -> None:
        self.losses_differentiate, self.beside = False, Beside(model)
        self._known = Known(whole=sharing.whole_weights)
        self.graphs_to_check = 2
        self.trained = Trained(whole=sharing.whole_weights)
        self.model, self.autocast, self.sharing = model, setup.autocast, sharing
        self.scaler = setup.scaler if setup.scaler is not None and setup.scaler.is_enabled() else None
        self.generators, self.recorded = tuple(setup.generators), setup.recorded
        self.devices = {parameter.device for parameter in model.parameters()}
        self.device = next(iter(self.devices), torch.device("cpu"))

    @property
    def low_precision(self) -> bool:
        """True if the losses carry the rounding errors of float16 or bfloat16."""
        return self.autocast is not None or any(p.dtype in LOW_PRECISION for p in self.model.parameters())

    def as_evaluated(self) -> AbstractContextManager[Any]:
        """Return a context in which a backward pass has the precision of its forward pass, under any autocast."""
        return torch.autocast(self.device.type, enabled=False)

    def buffer_state(self) -> BufferState:
        """Return the buffers of the model, and of the modules beside it that are known."""
        return BufferState(*self.beside.roots(), known=self._known)

    @contextmanager
    def preserved_buffers(self) -> Iterator[None]:
        """Within this context, forward passes leave the buffers of the model and of all other modules bit-identical."""
        with ExitStack() as stack:
            stack.enter_context(preserved_buffers(*self.beside.roots(), known=self._known))
            stack.enter_context(self.newcomers_preserved(stack))
            yield

    def newcomers_preserved(self, stack: ExitStack) -> AbstractContextManager[None]:
        """Return a context in which modules beside the model that are called for the first time stay as they are.

        Args:
            stack: Restores them when it is closed.
        """
        return self.beside.watched(lambda module: stack.enter_context(preserved_buffers(module, known=self._known)))

    def random_state(self) -> RandomState:
        """Return a snapshot of all generators."""
        return RandomState(self.devices, self.generators)

    def scaled(self, seeds: Sequence[Tensor]) -> list[Tensor]:
        """Return the weights of losses times the gradient scaler's factor, if there is a scaler."""
        return list(seeds) if self.scaler is None else [self.scaler.scale(seed) for seed in seeds]

    def unscaled(self, direction: list[Tensor | None]) -> list[Tensor | None]:
        """Divide a gradient by the gradient scaler's factor, if there is a scaler."""
        return direction if self.scaler is None else scale(direction, 1.0 / self.scaler.get_scale())
