"""Lightning: `MeltrModule`, a mixin for a ``LightningModule`` with a primary loss and auxiliary ones.

Example::

    class Net(MeltrModule, L.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(8, 3)

        def compute_losses(self, batch):
            scores = self.layer(batch[0])
            return {"label": cross_entropy(scores, batch[1]), "size": scores.square().mean()}

        def configure_bilevel(self):
            combiner = LossTransformer(["label", "size"])
            return {"combiner": combiner, "outer_optimizer": torch.optim.Adam(combiner.parameters(), 1e-4), "every": 3}

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 1e-3)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from meltr.autograd.losses import Compute, as_parts
from meltr.bilevel.results import StepResult
from meltr.errors import UserError
from meltr.hypergradients.setup import Setup
from meltr.integrations.fabric import AUTOCAST, check_lightning
from meltr.integrations.loop import FrameworkLoop, by_name, without_wrapper
from meltr.parallel.data_parallel import WrappedDataParallel
from meltr.parallel.ranks import Ranks

KEY = "meltr"
"""The key of a checkpoint that holds phi, the outer optimiser and the counters."""


class MeltrModule:
    """Makes a ``LightningModule`` train on several losses, by manual optimisation; write it before LightningModule.

    It has `training_step` and hooks for clipping, schedulers and checkpoints: an override of one must call ``super()``.
    The combiner must not be an attribute of the module, whose parameters the inner optimiser trains.

    Attributes:
        accumulate_grad_batches: Micro-batches of one step of the optimiser, as the argument of Lightning's Trainer that
            manual optimisation does not allow: gradients are divided by it, and the last batch of an epoch steps too.
        gradient_clip_val: Clip the gradient to this value; None: do not.
        gradient_clip_algorithm: ``norm`` or ``value``.
    """

    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None
    gradient_clip_algorithm: str = "norm"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False
        self._meltr: _Loop | None = None
        self._meltr_optimizer: Any = None
        self._meltr_saved: Mapping[str, Any] | None = None

    def compute_losses(self, batch: Any) -> Mapping[str, Tensor]:
        """Return the losses of a batch by the combiner's names: 0-dim means. Override it.

        An outer step calls it several times with the same batch and random numbers, so do not log in it.

        Args:
            batch: The batch on the device.
        """
        raise UserError(
            f"{type(self).__name__} does not define compute_losses.",
            "Define compute_losses(self, batch); it returns the losses by name, the primary one first.",
        )

    def configure_bilevel(self) -> Mapping[str, Any]:
        """Return the arguments of `meltr.Bilevel` but the model, such as ``combiner``. Override it.

        Called once per ``fit``, as ``configure_optimizers`` is.
        """
        raise UserError(
            f"{type(self).__name__} does not define configure_bilevel.",
            'Return {"combiner": LossTransformer([...]), "outer_optimizer": ...} from configure_bilevel(self).',
        )

    @property
    def bilevel(self) -> FrameworkLoop | None:
        """The loop with the `Bilevel`; None before the first step."""
        return self._meltr

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Take a batch: losses, an outer step if one is due, the inner gradient, and the optimiser's step."""
        module: Any = self
        optimizer, size = module.optimizers(), self.accumulate_grad_batches
        if isinstance(optimizer, list):
            raise UserError(
                f"{type(self).__name__} has {len(optimizer)} optimisers, expected one.",
                "Return one optimiser from configure_optimizers; that of the combiner belongs to configure_bilevel.",
            )
        last = (batch_idx + 1) % size == 0 or module.trainer.is_last_batch
        result = self._loop(optimizer).step(lambda: self.compute_losses(batch), size, last=last)
        if last:
            optimizer.step()
            optimizer.zero_grad()
            self._step_schedulers("step")
        module.log_dict(by_name(result))
        return result.combined

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        """Clip the gradient, which is no longer scaled."""
        _after(super(), "on_before_optimizer_step", optimizer)
        if self.gradient_clip_val is not None:
            module: Any = self
            module.clip_gradients(optimizer, self.gradient_clip_val, self.gradient_clip_algorithm)

    def on_train_epoch_end(self) -> None:
        """Step the schedulers that count epochs, which manual optimisation leaves to the module."""
        _after(super(), "on_train_epoch_end")
        self._step_schedulers("epoch")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add phi, the outer optimiser and the counters."""
        _after(super(), "on_save_checkpoint", checkpoint)
        if self._meltr is not None:
            checkpoint[KEY] = self._meltr.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what `on_save_checkpoint` added, for a ``fit`` that resumes."""
        _after(super(), "on_load_checkpoint", checkpoint)
        self._meltr_saved = checkpoint.get(KEY)

    def _loop(self, optimizer: Any) -> _Loop:
        """Return the loop of this ``fit``, with the state of the checkpoint that it resumes."""
        raw = without_wrapper(optimizer)
        if self._meltr is None or self._meltr_optimizer is not raw:
            module: Any = self
            with torch.random.fork_rng(devices=[]):  # so that the batch draws the same numbers as without
                settings = {"inner_optimizer": raw, **self.configure_bilevel()}
            combiner = settings.pop("combiner", None)
            if not isinstance(combiner, nn.Module) or any(each is combiner for each in module.modules()):
                found = "no combiner" if combiner is None else "a combiner that is a part of the module"
                raise UserError(
                    f"configure_bilevel of {type(self).__name__} returns {found}.",
                    'Return {"combiner": LossTransformer([...]), ...}, and do not assign the combiner to self.',
                )
            self._meltr, self._meltr_optimizer = _Loop(module, combiner, settings), raw
            if module.trainer.ckpt_path is not None:
                self._meltr.load_state_dict(self._resumed(module.trainer.ckpt_path))
        return self._meltr

    def _resumed(self, path: Any) -> Mapping[str, Any]:
        if self._meltr_saved is None:
            raise UserError(
                f"The checkpoint {path} has no state of the combiner.",
                "If the module overrides on_save_checkpoint or on_load_checkpoint, call super() in it.",
            )
        return self._meltr_saved

    def _step_schedulers(self, interval: str) -> None:
        module: Any = self
        trainer = module.trainer
        done = trainer.global_step if interval == "step" else trainer.current_epoch + 1
        for config in trainer.lr_scheduler_configs:
            if config.interval == interval and done % config.frequency == 0:
                metric = trainer.callback_metrics.get(config.monitor) if config.reduce_on_plateau else None
                module.lr_scheduler_step(config.scheduler, metric)


class _Loop(FrameworkLoop):
    """The loop of one ``fit``.

    Args:
        module: The ``LightningModule``.
        combiner: m.
        settings: Further arguments of `Bilevel`.
    """

    def __init__(self, module: Any, combiner: nn.Module, settings: dict[str, Any]) -> None:
        strategy = module.trainer.strategy
        precision = strategy.precision_plugin
        check_lightning(strategy, precision)
        self._sharing: _StepInForward | None = None
        if isinstance(strategy.model, DistributedDataParallel):
            self._sharing = _StepInForward(Ranks.current(), strategy.model, strategy)
            settings["setup"] = replace(settings.get("setup") or Setup(), sharing=self._sharing)
        super().__init__(
            module,
            combiner,
            settings.pop("outer_optimizer", None),
            device=module.device,
            autocast=AUTOCAST.get(precision.precision),
            scaler=getattr(precision, "scaler", None),
            by_model=False,
            settings=settings,
        )

    def step(self, compute: Compute, size: int, *, last: bool) -> StepResult:
        """Take one of `size` micro-batches; `last`: the optimiser steps after it."""
        if self._sharing is not None:
            self._sharing.synchronised = last
        return self.take(compute, accumulate=size, last=last)


class _StepInForward(WrappedDataParallel):
    """Data parallelism where the whole training step runs inside the forward pass of DistributedDataParallel.

    So the reducer has to be prepared before the inner backward pass, and for the last micro-batch of a step only.

    Args:
        ranks: The processes.
        ddp: The wrapper.
        strategy: The strategy of Lightning.
    """

    def __init__(self, ranks: Ranks, ddp: DistributedDataParallel, strategy: Any) -> None:
        super().__init__(ranks, ddp)
        self._strategy, self.synchronised = strategy, True

    def evaluate(self, compute: Compute, *, inner: bool) -> tuple[Tensor, ...]:
        """Call the loss function; prepare the reducer if an averaged gradient follows."""
        parts = as_parts(compute())
        if inner and self.synchronised and torch.is_grad_enabled():
            self._strategy.pre_backward(list(parts))
        return parts


def _after(base: Any, hook: str, *arguments: Any) -> None:
    """Call a hook of the classes after the mixin, if they have it."""
    function = getattr(base, hook, None)
    if function is not None:
        function(*arguments)
