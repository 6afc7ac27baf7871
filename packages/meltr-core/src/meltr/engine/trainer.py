"""The training loop: K inner steps, one outer step, evaluations and checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from meltr.bilevel.bilevel import Bilevel
from meltr.combiners.base import Combiner, SelfTrained
from meltr.context import Data, Evaluation, RunContext
from meltr.engine.batches import fingerprint, to_device
from meltr.engine.building import bilevel_settings
from meltr.engine.checkpoints import Checkpoints, load_backbone, load_module, load_training
from meltr.engine.clock import Clock
from meltr.engine.finite import FiniteGuard, StateGuard, named_parameters
from meltr.engine.hooks import Hooks, better
from meltr.engine.meter import Meter
from meltr.engine.outer_batches import OuterBatches
from meltr.engine.step_losses import StepLosses
from meltr.engine.step_records import step_record, warning_if_negative
from meltr.engine.stop_requests import StopRequests
from meltr.engine.train_state import Stateful, TrainState
from meltr.errors import MeltrError, NonFiniteError, StoppedRun
from meltr.folders.checkpoint_folder import CheckpointFolder
from meltr.hypergradients.estimators import Estimator
from meltr.hypergradients.schemes import Scheme
from meltr.hypergradients.setup import Setup
from meltr.observers.jsonl import MetricsWriter
from meltr.optim.building import autocast_dtype, inner_lr, inner_optimizer, lr_factor, outer_optimizer, set_lr
from meltr.parallel.heartbeat import doing
from meltr.parallel.ranks import Ranks
from meltr.parallel.sharing import Sharing
from meltr.seeding import derive, seed_again


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
        stop: What may ask the run to stop; None: nothing.
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
        stop: StopRequests | None = None,
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
        generators = [] if context.generator is None else [context.generator]
        dtype, recorded = autocast_dtype(spec.train.precision), spec.train.cuda_graphs
        setup = Setup(dtype, self.scaler, generators, self.sharing, recorded)
        self.bilevel = Bilevel(
            model,
            combiner,
            self.outer,
            scheme=scheme,
            estimator=estimator,
            inner_optimizer=self.optimizer,
            parameters=self.parameters,
            setup=setup,
            log=self._say,
            **bilevel_settings(spec, self.blocks),
        )
        self.losses = StepLosses(hooks, model, context, generators, self._say)
        self.outer_batches = OuterBatches(hooks, context, data, self.losses.of, independent=scheme.independent_batches)
        self.batch_size = min(spec.train.batch_size, data.train.size)
        self.meter = Meter(context.losses, context.device)
        self.clock = Clock(context.device, self.meter.leave_out)
        mean = None if self.sharing.whole_weights else self.ranks.mean
        self.guard = FiniteGuard(context.losses, context.device, named_parameters(model, groups), mean)
        self.state_guard = StateGuard(model, combiner, self.optimizer) if checkpoints else None
        self.state = TrainState()
        self.stop, self._saved = stop or StopRequests(), -1
        self._named: set[str] = set()

    @property
    def step(self) -> int:
        """Inner steps taken."""
        return self.state.step

    def _say(self, line: str, level: str = "info") -> None:
        if self.ranks.is_first:
            self.hooks.message(self.context, line, level)

    def fit(self) -> None:
        """Train from the current step to the last.

        Raises:
            NonFiniteError: If a loss, a gradient or a weight is NaN or infinite: which, when, and what was saved.
            StoppedRun: If the run was asked to stop; it is saved.
        """
        self.model.train()
        self.combiner.train()
        self.clock.start()
        try:
            with self.stop.after_the_step():
                if self.state.due:
                    self._validate()
                while self.step < self.total_steps:
                    epoch, index = divmod(self.step, self.steps_per_epoch)
                    self._epoch(epoch, index)
        except NonFiniteError as error:
            kept = self.checkpoints.describe_last() if self.checkpoints else "none (no run folder)"
            raise type(error)(f"{error.message} Last checkpoint: {kept}.", error.hint) from None

    def _epoch(self, epoch: int, start: int) -> None:
        spec = self.context.spec
        if start == 0 and spec.bilevel.replay_reset:
            self.outer_batches.buffer.clear()
        for index, raw in enumerate(self._batches(epoch, start), start):
            taken = self.bilevel.outer_steps
            self._train_step(epoch, index, to_device(raw, self.context.device))
            self.clock.end_step(outer=self.bilevel.outer_steps > taken)
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
            self._end_if_asked()

    def _train_step(self, epoch: int, index: int, batch: Any) -> None:
        spec, context, outer = self.context.spec, self.context, self.outer_batches
        others = () if self.ranks.is_first else ("rank", self.ranks.rank)
        doing(f"training step {self.step}")
        seed_again(derive(spec.seed, "step", self.step, *others), context.generator)
        if self.step == 0:
            self._check_parts(batch)
        self._set_lrs()
        replayed = outer.replayed and self.combiner.learned
        due = self.bilevel.outer_step_due and not replayed
        given = outer.for_step(batch, self.bilevel.outer_steps) if due else {}
        parts = self.losses.parts(batch, 2 if given.get("cross") else 1)
        result = self.bilevel.backward(parts, outer=False if replayed else None, **given)
        self.guard.check(self.step, result.losses)
        if self.scaler is None:  # A scaler skips steps whose gradient is not finite, and lowers its scale.
            self.guard.check_gradients(self.step)
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

    def _batches(self, epoch: int, start: int) -> Iterator[Any]:
        """Yield the batches of an epoch; if one cannot be read, what was trained is saved first."""
        try:
            yield from self.clock.timed(self.data.train.batches(epoch, start))
        except MeltrError as error:
            if self.step and self._saved != self.step and self.ranks.size == 1:
                self._save(best=False)
            if error.hint is not None:
                error.hint = error.hint.replace("--resume RUN", f"--resume {self.context.run_dir or 'RUN'}")
            raise

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
        for line in self.state.newly_skipped(getattr(self.data.train, "skipped", {})):
            self._say(line, "warning")
        if losses[0] != losses[0]:
            return  # nothing to log since the last line
        record = step_record(self, dict(zip(names, losses, strict=True)), pulls, combined, rate)
        warning = warning_if_negative(self.state, names[0], pulls[0])
        if warning is not None:
            self._say(warning, "warning")
        if self.metrics:
            self.metrics.train(record)
        if self.ranks.is_first:
            self.hooks.step_end(self.context, record)

    def _validate(self) -> None:
        self.guard.flush()
        self.state.due = False
        if self.data.validation is None:
            self._save(best=True)
            return
        evaluation = self._evaluate_unless_asked(self.data.validation)
        self.record_evaluation("validation", evaluation)
        value = float(evaluation.metrics[self.context.task.metrics[0]])
        improved = better(value, self.state.best, self.context.task.higher_is_better)
        if improved:
            found = {**evaluation.summary(), "step": self.step}
            del found["details"]
            self.state.best, self.state.best_step, self.state.best_evaluation = value, self.step, found
        self._save(best=improved)

    def evaluate(self, split: Any) -> Evaluation:
        """Evaluate a split with the same weights and buffers in all processes; rank 0's result counts.

        The adapter shares the split between the processes, or lets each of them evaluate all of it.

        Args:
            split: The split, as returned by `build_data`.
        """
        doing(f"evaluating after step {self.step}")
        if self.ranks.size > 1:
            for buffer in self.model.buffers():
                self.ranks.broadcast(buffer)
        with self.clock.aside("evaluations"):
            with self.sharing.gathered():
                evaluation = self.hooks.evaluate(self.model, split, self.context)
            found: Evaluation = self.ranks.broadcast_object(evaluation)
        return found

    def _evaluate_unless_asked(self, split: Any) -> Evaluation:
        """Evaluate; a request to stop ends that, and the evaluation is left to the resumed run."""
        try:
            if self.ranks.size > 1:  # All take part in the evaluation: none may leave it alone.
                code = self._agreed_request()
                if code:
                    raise self.stop.stopped(code)
                return self.evaluate(split)
            with self.stop.at_once():
                return self.evaluate(split)
        except StoppedRun as stopped:
            self.state.due = True
            self._end(stopped.exit_code)
            raise

    def _agreed_request(self) -> int:
        """Return the exit code of a request to stop that any process got, 0 if none did."""
        return self.stop.code if self.ranks.size == 1 else self.ranks.largest(self.stop.code)

    def _end_if_asked(self) -> None:
        doing(f"reading the batch of step {self.step}")
        code = self._agreed_request()
        if code:
            self._end(code)

    def _end(self, code: int) -> None:
        """Save, and end the run by `StoppedRun`; what was not logged yet is kept with the checkpoint."""
        if self._saved != self.step or self.state.due:
            self._save(best=False)
        saved = "" if self.checkpoints is None else f"; saved: {self.checkpoints.describe_last()}"
        raise self.stop.stopped(code, f"at step {self.step} of {self.total_steps}{saved}") from None

    def record_evaluation(self, split: str, evaluation: Evaluation) -> None:
        """Log an evaluation at the current step and tell the observers."""
        if self.metrics:
            self.metrics.evaluation(self.step, self.step / self.steps_per_epoch, split, evaluation)
        for line in evaluation.skipped_items.values():
            if line not in self._named:
                self._named.add(line)
                self._say(f"skipped {line}", "warning")
        if self.ranks.is_first:
            self.hooks.evaluation(self.context, split, self.step, evaluation)

    def _save(self, *, best: bool) -> None:
        if self.checkpoints is None:
            return
        self.guard.flush()
        doing(f"saving step {self.step}")
        if self.state_guard is not None:
            self.state_guard.check(self.step, self.ranks.mean if self.ranks.size > 1 else None)
        with self.clock.aside("checkpoints"):
            path = self.checkpoints.save(
                self.step,
                model=self.model,
                combiner=self.combiner,
                optimizer=self.optimizer,
                training=self.state_dict(),
                best=best,
                ranks=self.ranks,
            )
        self._saved = self.step
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
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        return {**self.state.state_dict(), **parts, "meter": self.meter.state_dict(), "clock": self.clock.state_dict()}

    def load(self, path: Path) -> None:
        """Continue from a checkpoint folder."""
        checkpoint = CheckpointFolder(path)
        state = load_training(checkpoint.training)
        load_backbone(path, self.model, optimizer=self.optimizer, state=state)
        load_module(checkpoint.combiner, self.combiner, "combiner")
        self.state = TrainState.from_state_dict(state)
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.clock.load_state_dict(state.get("clock", {"steps": state.get("seconds", 0.0)}))
        if "meter" in state:  # Earlier versions saved only where nothing was left to log.
            self.meter.load_state_dict(state["meter"])
        self._saved = self.step
