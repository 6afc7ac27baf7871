"""The training loop: K inner steps, one outer step, evaluations and checkpoints."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from meltr.autograd.losses import Compute
from meltr.bilevel.bilevel import Bilevel
from meltr.combiners.base import Combiner, SelfTrained
from meltr.context import Data, Evaluation, RunContext, StepRecord
from meltr.engine.batches import count_examples, fingerprint, to_device
from meltr.engine.checkpoints import Checkpoints, load_backbone, load_module, load_training
from meltr.engine.hooks import Hooks, better
from meltr.engine.meter import FiniteGuard, Meter, peak_memory_mb
from meltr.engine.outer_batches import OuterBatches
from meltr.engine.train_state import TrainState
from meltr.errors import NonFiniteLossError, UserError
from meltr.folders.checkpoint_folder import CheckpointFolder
from meltr.hypergradients.estimators import Estimator
from meltr.hypergradients.schemes import Scheme
from meltr.hypergradients.scope import Scope
from meltr.hypergradients.setup import Setup
from meltr.observers.jsonl import MetricsWriter
from meltr.optim.building import autocast_dtype, inner_lr, inner_optimizer, lr_factor, outer_optimizer, set_lr
from meltr.parallel.ranks import Ranks
from meltr.parallel.sharing import Sharing
from meltr.seeding import derive, seed_again

NEGATIVE_PATIENCE = 5
"""Number of consecutive log lines with a negative task weight of the primary loss before the run warns."""


class Stateful(Protocol):
    """A part of the trainer whose state is saved in a checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        """Return plain values and tensors."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> object:
        """Continue from the state that `state_dict` returned."""


class Trainer:
    """Trains one model with one seed. Everything random is a function of (seed, step), so resuming is exact.

    Args:
        hooks: Adapter and observers.
        context: Context of the run.
        data: Its data.
        model: The backbone, on its device.
        combiner: The combiner, on the same device.
        scheme: Chooses the direction q of an outer step.
        estimator: Computes g; used by this trainer only.
        checkpoints: Where to save checkpoints; None: do not save any.
        metrics: Where to log metrics; None: do not log any.
        ranks: The processes of the run.
        sharing: How they share the model.
        blocks: The backbone's blocks.
    """

    def __init__(
        self,
        hooks: Hooks,
        context: RunContext,
        data: Data,
        *,
        model: nn.Module,
        combiner: Combiner,
        scheme: Scheme,
        estimator: Estimator,
        checkpoints: Checkpoints | None = None,
        metrics: MetricsWriter | None = None,
        ranks: Ranks | None = None,
        sharing: Sharing | None = None,
        blocks: Sequence[nn.Module] | None = None,
    ) -> None:
        self.hooks, self.context, self.data = hooks, context, data
        self.model, self.combiner = model, combiner
        self.checkpoints, self.metrics = checkpoints, metrics
        self.ranks, self.sharing, self.blocks = ranks or Ranks.single(context.device), sharing or Sharing(), blocks
        spec = context.spec
        self.steps_per_epoch = len(data.train)
        total = spec.train.epochs * self.steps_per_epoch
        self.total_steps = total if spec.train.max_steps is None else min(total, spec.train.max_steps)
        groups = hooks.parameter_groups(model, context)
        self.optimizer = inner_optimizer(spec.train, groups)
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        trained = combiner.learned or isinstance(combiner, SelfTrained)
        trained = trained and len(context.losses) > 1 and any(p.requires_grad for p in combiner.parameters())
        self.outer = outer_optimizer(spec.bilevel, combiner) if trained else None
        self.scaler = torch.amp.GradScaler(context.device.type) if spec.train.precision == "fp16" else None
        self.bilevel = self._bilevel(scheme, estimator)
        self.outer_batches = OuterBatches(hooks, context, data, self._losses, independent=scheme.independent_batches)
        self.batch_size = min(spec.train.batch_size, data.train.size)
        self.meter = Meter(context.losses, context.device)
        self.guard = FiniteGuard(context.losses, context.device)
        self.state = TrainState()
        self._clock = 0.0

    @property
    def step(self) -> int:
        """Inner steps taken."""
        return self.state.step

    def _bilevel(self, scheme: Scheme, estimator: Estimator) -> Bilevel:
        spec = self.context.spec
        generators = [] if self.context.generator is None else [self.context.generator]
        return Bilevel(
            self.model,
            self.combiner,
            self.outer,
            every=spec.bilevel.every,
            gamma=spec.bilevel.gamma,
            scheme=scheme,
            estimator=estimator,
            inner_optimizer=self.optimizer,
            scope=Scope(spec.bilevel.scope, spec.bilevel.scope_blocks, self.blocks),
            retain_graph=spec.bilevel.retain_graph,
            direct_term=spec.bilevel.direct_term,
            outer_clip_norm=spec.bilevel.outer_clip_norm,
            parameters=self.parameters,
            setup=Setup(autocast_dtype(spec.train.precision), self.scaler, generators, self.sharing),
            seed=spec.seed,
            log=self._say,
        )

    def _say(self, line: str) -> None:
        if self.ranks.is_first:
            self.hooks.message(self.context, line)

    def fit(self) -> None:
        """Train from the current step to the last.

        Raises:
            NonFiniteLossError: If a loss is NaN or infinite, with the loss, the step and the last checkpoint.
        """
        self.model.train()
        self.combiner.train()
        self._clock = time.perf_counter()
        try:
            while self.step < self.total_steps:
                epoch, index = divmod(self.step, self.steps_per_epoch)
                self._epoch(epoch, index)
        except NonFiniteLossError as error:
            kept = self.checkpoints.describe_last() if self.checkpoints else "none (no run folder)"
            raise NonFiniteLossError(f"{error.message} Last checkpoint: {kept}.", error.hint) from None

    def _epoch(self, epoch: int, start: int) -> None:
        spec = self.context.spec
        if start == 0 and spec.bilevel.replay_reset:
            self.outer_batches.buffer.clear()
        for index, raw in enumerate(self.data.train.batches(epoch, start), start):
            self._train_step(epoch, index, to_device(raw, self.context.device))
            now = time.perf_counter()
            self.state.seconds, self._clock = self.state.seconds + now - self._clock, now
            if self.step % spec.train.log_every == 0:
                self._log()
            last = self.step >= self.total_steps
            ends_epoch = index + 1 == self.steps_per_epoch
            if ends_epoch:
                self.combiner.end_epoch()
            if last or (ends_epoch and (epoch + 1) % spec.train.eval_every == 0):
                self._log()
                self._validate()
            elif spec.train.checkpoint_every is not None and self.step % spec.train.checkpoint_every == 0:
                self._log()
                self._save(best=False)
            if last:
                return

    def _train_step(self, epoch: int, index: int, batch: Any) -> None:
        spec, context, outer = self.context.spec, self.context, self.outer_batches
        others = () if self.ranks.is_first else ("rank", self.ranks.rank)
        seed_again(derive(spec.seed, "step", self.step, *others), context.generator)
        if self.step == 0:
            self._check_parts(batch)
        self._set_lrs()
        replayed = outer.replayed and self.combiner.learned
        due = self.bilevel.outer_step_due and not replayed
        given = outer.for_step(batch, self.bilevel.outer_steps) if due else {}
        result = self.bilevel.backward(self._micro_batches(batch), outer=False if replayed else None, **given)
        self.guard.check(self.step, result.losses)
        self._step_optimizer()
        self.bilevel.after_step()
        position = self.step / self.steps_per_epoch
        self.meter.update(result, step=self.step, epoch=position, examples=self.batch_size)
        if replayed:
            drawn = outer.replay(batch, step=self.step, index=index)
            if drawn is not None:
                found = self.bilevel.outer_step(*drawn, others=outer.others(self.bilevel.outer_steps))
                self.meter.update_outer(found, step=self.step, epoch=position)
            outer.remember(epoch, index, batch, step=self.step)
        self.state.step += 1

    def _step_optimizer(self) -> None:
        clip = self.context.spec.train.clip_norm
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, clip)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def _losses(self, batch: Any, context: RunContext) -> Compute:
        return lambda: self.hooks.losses(self.model, batch, context)

    def _micro_batches(self, batch: Any) -> list[Compute]:
        """Return the loss functions of the micro-batches of a batch.

        Raises:
            UserError: If the batch cannot be split into equal micro-batches.
        """
        number = self.context.spec.train.accumulate
        if number == 1:
            return [self._losses(batch, self.context)]
        count = count_examples(batch)
        if count % number:
            raise UserError(
                f"A batch of {count} examples cannot be split into accumulate={number} equal micro-batches.",
                "Choose a batch_size that is a multiple of accumulate.",
            )
        size = count // number
        cut = [self.hooks.slice_batch(batch, start, start + size) for start in range(0, count, size)]
        return [self._losses(each, self.context) for each in cut]

    def _check_parts(self, batch: Any) -> None:
        """Check that every process got its own part of the first batch.

        Raises:
            PluginError: If all processes got the same part.
        """
        if self.ranks.size > 1:
            prints = self.ranks.gather_objects(fingerprint(batch))
            self.hooks.check_parts(prints)

    def _set_lrs(self) -> None:
        train, bilevel = self.context.spec.train, self.context.spec.bilevel
        lr = inner_lr(train, self.step, total=self.total_steps, steps_per_epoch=self.steps_per_epoch)
        set_lr(self.optimizer, lr)
        if self.outer is not None:
            set_lr(
                self.outer, bilevel.outer_lr * lr_factor(self.step, self.total_steps, schedule=bilevel.outer_schedule)
            )

    def _log(self) -> None:
        names = self.context.losses
        losses, pulls, combined, rate, outer = self.meter.flush()
        for step, epoch, products, size in outer:
            self.state.last_outer = (dict(zip(names, products, strict=True)), size)
            if self.metrics:
                self.metrics.outer(step, epoch, *self.state.last_outer)
        if losses[0] != losses[0]:
            return  # nothing to log since the last line
        record = StepRecord(
            step=self.step,
            epoch=self.step / self.steps_per_epoch,
            losses=dict(zip(names, losses, strict=True)),
            sensitivities=dict(zip(names, pulls, strict=True)),
            combined=combined,
            lr=self.optimizer.param_groups[0]["lr"],
            examples_per_second=rate,
            memory_mb=peak_memory_mb(self.context.device),
            eta_seconds=self.state.seconds / self.step * (self.total_steps - self.step),
            gradient_products=self.state.last_outer[0] if self.state.last_outer else None,
            outer_gradient_norm=self.state.last_outer[1] if self.state.last_outer else None,
        )
        self._warn_if_negative(pulls[0])
        if self.metrics:
            self.metrics.train(record)
        if self.ranks.is_first:
            self.hooks.step_end(self.context, record)

    def _warn_if_negative(self, pull: float) -> None:
        self.state.negative = self.state.negative + 1 if pull < 0 else 0
        if self.state.negative == NEGATIVE_PATIENCE and self.ranks.is_first:
            self.hooks.message(
                self.context,
                f"The task weight of the primary loss {self.context.losses[0]!r} stays negative ({pull:.2g}): training "
                "increases this loss. Start at the plain sum (--set start=sum) or raise gamma (--set gamma=1).",
                "warning",
            )

    def _validate(self) -> None:
        self.guard.flush()
        if self.data.validation is None:
            self._save(best=True)
            return
        with self._aside():
            evaluation = self.evaluate(self.data.validation)
        self.record_evaluation("validation", evaluation)
        value = float(evaluation.metrics[self.context.task.metrics[0]])
        improved = better(value, self.state.best, self.context.task.higher_is_better)
        if improved:
            found = {**evaluation.summary(), "step": self.step}
            del found["details"]
            self.state.best, self.state.best_step, self.state.best_evaluation = value, self.step, found
        self._save(best=improved)

    def evaluate(self, split: Any) -> Evaluation:
        """Evaluate a split; every process evaluates all of it, with the same weights and buffers, and rank 0's counts.

        Args:
            split: The split, as returned by `build_data`.
        """
        if self.ranks.size > 1:
            for buffer in self.model.buffers():
                self.ranks.broadcast(buffer)
        with self.sharing.gathered():
            evaluation = self.hooks.evaluate(self.model, split, self.context)
        found: Evaluation = self.ranks.broadcast_object(evaluation)
        return found

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """A context for work that does not count as training time: evaluations and checkpoints."""
        started = time.perf_counter()
        yield
        elapsed = time.perf_counter() - started
        self._clock += elapsed
        self.meter.leave_out(elapsed)

    def record_evaluation(self, split: str, evaluation: Evaluation) -> None:
        """Log an evaluation at the current step and tell the observers."""
        if self.metrics:
            self.metrics.evaluation(self.step, self.step / self.steps_per_epoch, split, evaluation)
        if self.ranks.is_first:
            self.hooks.evaluation(self.context, split, self.step, evaluation)

    def _save(self, *, best: bool) -> None:
        if self.checkpoints is None:
            return
        self.guard.flush()
        with self._aside():
            path = self.checkpoints.save(
                self.step,
                model=self.model,
                combiner=self.combiner,
                optimizer=self.optimizer,
                training=self.state_dict(),
                best=best,
                ranks=self.ranks,
            )
        if self.ranks.is_first:
            self.hooks.checkpoint(self.context, path)

    def _parts(self) -> dict[str, Stateful]:
        """Return the other parts with a state to save, by name in the checkpoint; w's optimiser is separate."""
        parts: dict[str, Stateful | None] = {
            "outer_optimizer": self.outer,
            "bilevel": self.bilevel.progress,
            "replay": self.outer_batches,
            "scaler": self.scaler,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs besides the weights: plain values and tensors."""
        return {**self.state.state_dict(), **{name: part.state_dict() for name, part in self._parts().items()}}

    def load(self, path: Path) -> None:
        """Continue from a checkpoint folder."""
        checkpoint = CheckpointFolder(path)
        state = load_training(checkpoint.training)
        load_backbone(path, self.model, optimizer=self.optimizer, state=state)
        load_module(checkpoint.combiner, self.combiner, "combiner")
        self.state = TrainState.from_state_dict(state)
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
