"""One step of the outer optimiser on the combiner's parameters phi."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from meltr.parallel.sharing import Sharing


class CombinerUpdate:
    """Passes phi's gradient to the outer optimiser.

    Args:
        combiner: m; its trainable parameters are phi.
        optimizer: The outer optimiser.
        sharing: How values are averaged over processes.
        clip_norm: Clip phi's gradient to this norm; None: no clipping.
    """

    def __init__(
        self, combiner: nn.Module, optimizer: torch.optim.Optimizer, sharing: Sharing, clip_norm: float | None
    ) -> None:
        self._combiner, self._optimizer, self._sharing, self._clip_norm = combiner, optimizer, sharing, clip_norm

    def averaged(self, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return phi's gradient averaged over processes: one entry per trainable parameter, in their order."""
        return self._sharing.mean_small(gradients)

    def step(self, gradients: Sequence[Tensor | None]) -> None:
        """Clip phi's gradient and take a step of the optimiser.

        Args:
            gradients: One per trainable parameter, in their order; None leaves that parameter unchanged.
        """
        trainable = [parameter for parameter in self._combiner.parameters() if parameter.requires_grad]
        for parameter, gradient in zip(trainable, gradients, strict=True):
            parameter.grad = gradient
        if self._clip_norm is not None and any(gradient is not None for gradient in gradients):
            torch.nn.utils.clip_grad_norm_(trainable, self._clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
