"""Lightning Fabric: `FabricBilevel` takes the place of ``fabric.backward``.

Example::

    model, optimizer = fabric.setup(model, optimizer)
    bilevel = FabricBilevel(fabric, model, combiner, torch.optim.Adam(combiner.parameters(), 1e-4))
    for batch in fabric.setup_dataloaders(loader):
        bilevel.backward(lambda: task_losses(model, batch))     # instead of fabric.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
    fabric.save("last.ckpt", {"model": model, "optimizer": optimizer, "bilevel": bilevel})
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from meltr.autograd.losses import Compute
from meltr.bilevel.results import StepResult
from meltr.errors import UserError
from meltr.integrations.loop import FrameworkLoop

AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""Data types of the precisions of Lightning that autocast."""

WHOLE = ("32-true", "64-true", "bf16-true", "16-true")
"""Precisions of Lightning that have one data type for everything."""


class FabricBilevel(FrameworkLoop):
    """`Bilevel` with the precision, gradient scaler and processes of a `Fabric`.

    Args:
        fabric: The `Fabric`.
        model: The model that ``fabric.setup`` returned.
        combiner: m; it is moved to the fabric's device.
        outer_optimizer: Optimiser of the combiner's parameters; None: the combiner is not trained.
        settings: Further arguments of `Bilevel`, such as ``every`` and ``scheme``.

    Raises:
        UserError: If the model was not set up, or the strategy or precision is not supported.
    """

    def __init__(
        self, fabric: Any, model: Any, combiner: nn.Module, outer_optimizer: Any = None, **settings: Any
    ) -> None:
        inside = getattr(model, "_forward_module", None)
        if inside is None:
            raise UserError(
                f"The model ({type(model).__name__}) was not set up by Fabric.",
                "First call model, optimizer = fabric.setup(model, optimizer).",
            )
        precision = fabric.strategy.precision
        check_lightning(fabric.strategy, precision)
        self._wrappers = sys.modules[type(model).__module__]
        super().__init__(
            inside,
            combiner,
            outer_optimizer,
            device=fabric.device,
            autocast=AUTOCAST.get(precision.precision),
            scaler=getattr(precision, "scaler", None),
            settings=settings,
        )

    def backward(self, compute: Compute, *, accumulate: int = 1, last: bool = False, **how: Any) -> StepResult:
        """Add the inner gradient to ``.grad``, scaled as ``fabric.backward`` does.

        Args:
            compute: Returns the task losses of the current batch, by name.
            accumulate: n, if the optimiser steps after every n calls; their gradients are averaged. With several
                processes, call it within ``fabric.no_backward_sync(model, enabled=...)`` before the last of them.
            last: Whether the optimiser steps after this call, before the n-th.
            how: Further arguments of `Bilevel.backward`, such as ``primary``.
        """
        with self._inside_backward():
            return self.take(compute, accumulate=accumulate, last=last or accumulate == 1, **how)

    @contextmanager
    def _inside_backward(self) -> Iterator[None]:
        """Within this context, Fabric does not ask for a call of ``fabric.backward``."""
        wrappers: Any = self._wrappers
        before = getattr(wrappers, "_in_fabric_backward", False)
        wrappers._in_fabric_backward = True
        try:
            yield
        finally:
            wrappers._in_fabric_backward = before


def check_lightning(strategy: Any, precision: Any) -> None:
    """Check that a strategy and a precision of Lightning are supported.

    Raises:
        UserError: If not.
    """
    names = {each.__name__ for each in type(strategy).__mro__}
    if not names & {"SingleDeviceStrategy", "DDPStrategy"}:
        raise UserError(
            f"Bilevel does not support {type(strategy).__name__} of Lightning.",
            'Use one device, or strategy="ddp" for several.',
        )
    name = getattr(precision, "precision", None)
    if name not in (*AUTOCAST, *WHOLE):
        raise UserError(
            f"Bilevel does not support precision={name!r} of Lightning.",
            f"Use one of {', '.join((*WHOLE, *AUTOCAST))}.",
        )
