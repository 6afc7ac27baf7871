"""The combiner as a function of the losses: its value, its task weights, and the gradient of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor, nn

from meltr.autograd.captured import Captured
from meltr.combiners.base import Combiner, sensitivities
from meltr.hypergradients.outer_gradient import outer_gradient


class CombinerFunction:
    """Calls the combiner; on CUDA as captured graphs, if the combiner allows it (`Combiner.capturable`).

    Args:
        combiner: m.
        gamma: Weight of the regulariser |m(l) - sum(l)| (eq. 6).
        log: Called with one line of text if a capture fails.

    Attributes:
        combiner: m.
    """

    def __init__(self, combiner: nn.Module, gamma: float, log: Callable[[str], None] = lambda line: None) -> None:
        self.combiner, self._gamma = combiner, gamma
        self._weights = Captured(self._value_and_weights, signature=self._signature, log=log)
        self._gradient = Captured(self._plain_gradient, signature=self._signature, log=log)
        self._gradient_with_direct_term = Captured(self._plain_gradient, signature=self._signature, log=log)

    def task_weights(self, losses: Tensor) -> tuple[Tensor, Tensor]:
        """Return m(l), shape (), and the task weights a = dm/dl, shape (T+1,), as `sensitivities` does.

        Args:
            losses: l, shape (T+1,).
        """
        if not self._capturable:
            return sensitivities(self.combiner, losses)
        (both,) = self._weights(losses)
        assert both is not None
        if self._weights.replays:
            both = both.clone()
        return both[0], both[1:]

    def gradient(self, losses: Tensor, products: Tensor, direct_at: Tensor | None = None) -> list[Tensor | None]:
        """Return the gradient of phi, as `outer_gradient` does; on CUDA, tensors that the next call overwrites.

        Args:
            losses: l, shape (T+1,).
            products: g = J q, shape (T+1,).
            direct_at: Losses at which to add the regulariser's own derivative; None: do not add it.
        """
        if not self._capturable:
            return outer_gradient(self.combiner, losses, products, gamma=self._gamma, direct_at=direct_at)
        if direct_at is None:
            return list(self._gradient(losses, products))
        return list(self._gradient_with_direct_term(losses, products, direct_at))

    @property
    def size(self) -> int:
        """Number of trainable tensors of the combiner."""
        return sum(parameter.requires_grad for parameter in self.combiner.parameters())

    @property
    def draws(self) -> bool:
        """False if the combiner is known to draw no random numbers."""
        return not self._capturable

    @property
    def _capturable(self) -> bool:
        return isinstance(self.combiner, Combiner) and self.combiner.capturable

    def _value_and_weights(self, losses: Tensor) -> Sequence[Tensor]:
        combined, a = sensitivities(self.combiner, losses)
        return [torch.cat([combined.reshape(1).to(a.dtype), a])]

    def _plain_gradient(
        self, losses: Tensor, products: Tensor, direct_at: Tensor | None = None
    ) -> Sequence[Tensor | None]:
        return outer_gradient(self.combiner, losses, products, gamma=self._gamma, direct_at=direct_at)

    def _signature(self) -> Hashable:
        """Return what the captured graphs depend on besides their inputs."""
        tensors = [*self.combiner.parameters(), *self.combiner.buffers()]
        places = tuple((tensor.data_ptr(), tensor.dtype, tensor.requires_grad) for tensor in tensors)
        return places, self.combiner.training, torch.get_float32_matmul_precision()
