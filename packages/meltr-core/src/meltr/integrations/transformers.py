"""Hugging Face Transformers: `MeltrTrainer`, a ``Trainer`` for a primary loss with auxiliary ones.

Example::

    class MyTrainer(MeltrTrainer):
        def compute_losses(self, model, inputs):
            outputs = model(**inputs)
            return {"label": outputs.loss, "size": outputs.logits.square().mean()}

    combiner = LossTransformer(["label", "size"])
    outer_optimizer = torch.optim.Adam(combiner.parameters(), 1e-4)
    trainer = MyTrainer(model, args, train_dataset=data, combiner=combiner, outer_optimizer=outer_optimizer)
    trainer.train()
"""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from meltr.errors import UserError
from meltr.files import write_bytes
from meltr.integrations.accelerate import AcceleratedBilevel
from meltr.integrations.libraries import missing
from meltr.integrations.loop import StepMeans

if TYPE_CHECKING:  # a type checker would have to read all of the library
    Trainer: Any
    TrainerCallback: Any
    get_last_checkpoint: Any
else:
    try:
        from transformers import Trainer, TrainerCallback
        from transformers.trainer_utils import get_last_checkpoint
    except ImportError as error:
        raise missing("transformers", __name__) from error

FILE = "meltr.pt"
"""The file in a checkpoint of the Trainer that holds phi, the outer optimiser and the counters."""


class BilevelTraining:
    """The part of `MeltrTrainer` that is a mixin for any ``Trainer``: ``class T(BilevelTraining, Seq2SeqTrainer)``.

    Micro-batches of ``gradient_accumulation_steps`` count equally: each loss is a mean over its own micro-batch. Logs
    hold ``loss/NAME``, ``weight/NAME`` (means) and ``alignment/NAME``. Every checkpoint holds `FILE`.

    Args:
        args: Arguments of the ``Trainer``.
        combiner: m, with the names of the losses.
        outer_optimizer: Optimiser of the combiner's parameters; None: the combiner is not trained.
        bilevel: Further arguments of `meltr.Bilevel`, such as ``{"every": 3}``.
        kwargs: Arguments of the ``Trainer``.

    Raises:
        UserError: If there is no combiner, or the Trainer has its own loss function.
    """

    def __init__(
        self,
        *args: Any,
        combiner: nn.Module | None = None,
        outer_optimizer: torch.optim.Optimizer | None = None,
        bilevel: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        name = type(self).__name__
        if not isinstance(combiner, nn.Module):
            raise UserError(
                f"{name} needs a combiner, got {combiner!r}.",
                f'Write {name}(..., combiner=LossTransformer(["primary", "auxiliary"])) with the names of your losses.',
            )
        if kwargs.get("compute_loss_func") is not None:
            raise UserError(f"{name} does not use compute_loss_func.", "Compute each loss in compute_losses.")
        super().__init__(*args, **kwargs)
        self.combiner, self.outer_optimizer = combiner, outer_optimizer
        self._settings, self._means = dict(bilevel or {}), StepMeans()
        self._loop: AcceleratedBilevel | None = None
        self._loop_model: nn.Module | None = None
        self._continued: Mapping[str, Any] | None = None
        self._start = copy.deepcopy(combiner.state_dict()), copy.deepcopy(_state_of(outer_optimizer))
        self.add_callback(_TrainBegin(self))  # type: ignore[attr-defined]

    def compute_losses(self, model: nn.Module, inputs: dict[str, Any]) -> Mapping[str, Tensor]:
        """Return the losses of a micro-batch by the combiner's names: 0-dim means. Override it.

        An outer step calls it several times with the same inputs and random numbers.

        Args:
            model: The model, in training mode, as the Trainer wraps it.
            inputs: The micro-batch on the device; a copy, of which entries may be removed.
        """
        raise UserError(
            f"{type(self).__name__} does not define compute_losses.",
            "Define compute_losses(self, model, inputs); it returns the losses by name, the primary one first.",
        )

    @property
    def bilevel(self) -> AcceleratedBilevel | None:
        """The loop with the `Bilevel`; None before the first step."""
        return self._loop

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Take a micro-batch: losses, an outer step if one is due, and the inner gradient; return its share of m(l)."""
        trainer: Any = self
        model.train()
        if callable(getattr(trainer.optimizer, "train", None)):
            trainer.optimizer.train()
        inputs = trainer._prepare_inputs(inputs)
        steps = trainer.current_gradient_accumulation_steps
        result = self._loop_of(model).take(
            lambda: self.compute_losses(model, copy.copy(inputs)),
            accumulate=steps,
            last=trainer.accelerator.sync_gradients,
        )
        self._means.add(result)
        share: Tensor = result.combined.to(trainer.args.device) / steps
        return share

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, with losses and task weights by name if the log is about training steps."""
        if "loss" in logs:
            logs |= self._means.take()
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train as ``Trainer.train`` does; a resumed training also continues phi.

        Raises:
            UserError: If the checkpoint has no state of the combiner.
        """
        trainer: Any = self
        if resume_from_checkpoint is True:
            resume_from_checkpoint = get_last_checkpoint(trainer.args.output_dir) or True
        self._continued = None
        if isinstance(resume_from_checkpoint, (str, Path)):
            self._continued = _read(Path(resume_from_checkpoint))
        return super().train(resume_from_checkpoint, *args, **kwargs)  # type: ignore[misc]

    def save_model(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        """Save the model as ``Trainer.save_model`` does, and phi beside it in `FILE`."""
        trainer: Any = self
        super().save_model(output_dir, *args, **kwargs)  # type: ignore[misc]
        if self._loop is None:
            return
        state, content = self._loop.state_dict(), io.BytesIO()
        if trainer.args.should_save:
            torch.save(state, content)
            write_bytes(Path(output_dir or trainer.args.output_dir) / FILE, content.getvalue())

    def begin_training(self) -> None:
        """Prepare for the first step of ``train``: phi of the checkpoint, or its start if the model is a new one."""
        if self._loop is not None:
            self._loop.after_step()
            self._loop.bilevel.after_step()  # a window that was left open
        self._means = StepMeans()
        if self._continued is None and getattr(self, "model_init", None) is not None:
            self._loop = None
            self.combiner.load_state_dict(copy.deepcopy(self._start[0]))
            if self.outer_optimizer is not None:
                self.outer_optimizer.load_state_dict(copy.deepcopy(self._start[1]))

    def _loop_of(self, model: nn.Module) -> AcceleratedBilevel:
        """Return the loop, which is made when the model is prepared; of another model, with the state so far."""
        if self._loop is None or self._loop_model is not model:
            trainer: Any = self
            state = None if self._loop is None else self._loop.state_dict()
            settings = {"seed": trainer.args.seed, "inner_optimizer": trainer.optimizer, **self._settings}
            optimizer = self.outer_optimizer
            self._loop = AcceleratedBilevel(
                trainer.accelerator, model, self.combiner, optimizer, save=False, **settings
            )
            self._loop_model = model
            if state is not None:
                self._loop.load_state_dict(state)
        if self._continued is not None:
            self._loop.load_state_dict(self._continued)
            self._continued = None
        return self._loop


class MeltrTrainer(BilevelTraining, Trainer):  # type: ignore[misc]
    """A ``Trainer`` whose `compute_losses` returns several losses by name; see `BilevelTraining`."""


class _TrainBegin(TrainerCallback):  # type: ignore[misc]
    """Tells the trainer that training begins, also after a smaller batch size was chosen.

    Args:
        trainer: The trainer.
    """

    def __init__(self, trainer: BilevelTraining) -> None:
        self._trainer = trainer

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._trainer.begin_training()


def _state_of(optimizer: torch.optim.Optimizer | None) -> dict[str, Any]:
    return {} if optimizer is None else optimizer.state_dict()


def _read(checkpoint: Path) -> Mapping[str, Any]:
    """Return the state in a checkpoint.

    Raises:
        UserError: If there is none.
    """
    file = checkpoint / FILE
    if not file.is_file():
        raise UserError(
            f"{checkpoint} has no {FILE}: a MeltrTrainer did not write this checkpoint.",
            "Load its model and start a new training, or resume from a checkpoint of MeltrTrainer.",
        )
    state: Mapping[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return state
