"""Accelerate: `AcceleratedBilevel` takes the place of ``accelerator.backward``.

Example::

    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    bilevel = AcceleratedBilevel(accelerator, model, combiner, torch.optim.Adam(combiner.parameters(), 1e-4))
    for batch in loader:
        with accelerator.accumulate(model):
            bilevel.backward(lambda: task_losses(model, batch))     # instead of accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from meltr.autograd.losses import Compute
from meltr.bilevel.results import StepResult
from meltr.errors import UserError
from meltr.integrations.loop import FrameworkLoop

_AUTOCAST = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_KINDS = ("NO", "MULTI_CPU", "MULTI_GPU")


class AcceleratedBilevel(FrameworkLoop):
    """`Bilevel` with the precision, gradient scaler, accumulation and processes of an `Accelerator`.

    ``accelerator.save_state`` and ``load_state`` hold its state. Make it after ``accelerator.prepare``, and do not
    prepare the combiner or its optimiser.

    Args:
        accelerator: The `Accelerator`.
        model: The model that ``accelerator.prepare`` returned.
        combiner: m; it is moved to the accelerator's device.
        outer_optimizer: Optimiser of the combiner's parameters; None: the combiner is not trained.
        save: Make the state a part of ``accelerator.save_state``.
        settings: Further arguments of `Bilevel`, such as ``every`` and ``scheme``.

    Raises:
        UserError: If the model was not prepared, or the accelerator's plugin or precision is not supported.
    """

    def __init__(
        self,
        accelerator: Any,
        model: nn.Module,
        combiner: nn.Module,
        outer_optimizer: Any = None,
        *,
        save: bool = True,
        **settings: Any,
    ) -> None:
        kind = str(getattr(accelerator.distributed_type, "value", accelerator.distributed_type))
        if kind not in _KINDS or getattr(accelerator, "parallelism_config", None) is not None:
            found = kind if kind not in _KINDS else "a parallelism_config"
            raise UserError(
                f"Bilevel does not support {found} of Accelerate.",
                "Use one process, or DistributedDataParallel (accelerate launch --multi_gpu).",
            )
        if accelerator.mixed_precision not in _AUTOCAST:
            raise UserError(
                f"Bilevel does not support mixed_precision={accelerator.mixed_precision!r}.", "Use no, bf16 or fp16."
            )
        if getattr(accelerator, "has_lomo_optimizer", False):
            raise UserError("Bilevel does not support LOMO optimisers.", "Use another optimiser.")
        if not getattr(model, "_is_accelerate_prepared", False):
            raise UserError(
                f"The model ({type(model).__name__}) was not prepared by this accelerator.",
                "First call model, optimizer = accelerator.prepare(model, optimizer).",
            )
        self._accelerator = accelerator
        super().__init__(
            model,
            combiner,
            outer_optimizer,
            device=accelerator.device,
            autocast=_AUTOCAST[accelerator.mixed_precision],
            scaler=accelerator.scaler,
            settings=settings,
        )
        if save:
            accelerator.register_for_checkpointing(self)

    def backward(self, compute: Compute, **how: Any) -> StepResult:
        """Add the inner gradient to ``.grad``, as ``accelerator.backward`` does: scaled, and divided by the steps.

        Micro-batches form a window that ends when the accelerator lets the optimiser step, also at the end of a data
        loader. They are averaged over ``gradient_accumulation_steps``, as Accelerate does.

        Args:
            compute: Returns the task losses of the current batch, by name.
            how: Further arguments of `Bilevel.backward`, such as ``primary``.
        """
        steps = self._accelerator.gradient_accumulation_steps
        return self.take(compute, accumulate=steps, last=self._accelerator.sync_gradients, **how)
