"""A run's model on a few fixed batches, stepped by the run's own trainer, always from the same weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from meltr.combiners.base import Combiner
from meltr.context import Data, RunContext, StepRecord
from meltr.engine import building, wrapping
from meltr.engine.built_run import build_run
from meltr.engine.trainer import Trainer
from meltr.hookspecs import hookimpl
from meltr.optim.building import autocast_dtype
from meltr.plugins import load_object
from meltr.seeding import derive, seed_everything
from meltr.settings import resolve
from meltr.verify.memory import MIB, peak_memory
from meltr.verify.operations import CountedHooks, Operations, count
from meltr.verify.state import ENDLESS, FixedBatches, Snapshot

if TYPE_CHECKING:
    from meltr.plugins import Registry
    from meltr.specs import RunSpec

STEADY: Mapping[str, Any] = {
    "train.schedule": "constant",
    "train.warmup": 0,
    "train.epochs": 1,
    "train.max_steps": "none",
    "train.checkpoint_every": "none",
    "train.log_every": ENDLESS,
    "bilevel.outer_clip_norm": "none",
    "bilevel.budget": "none",
}
"""Settings with which all steps do the same work, only training happens, and gradients are comparable."""


@dataclass(frozen=True)
class Found:
    """Result of one outer step.

    Args:
        products: g, one number per loss.
        gradient: The gradient of the combiner's parameters, flat, float64; None if the outer step was skipped.
        estimator: The estimator that computed g.
        messages: Messages of the engine.
        weights_kept: True if the weights were bit-identical when the inner optimiser took its step.
    """

    products: Tensor
    gradient: Tensor | None
    estimator: str
    messages: tuple[str, ...]
    weights_kept: bool


class _Watch:
    """An observer that keeps what the trainer reports."""

    def __init__(self) -> None:
        self.record: StepRecord | None = None
        self.messages: list[str] = []

    @hookimpl
    def on_step_end(self, record: StepRecord) -> None:
        self.record = record

    @hookimpl
    def on_message(self, message: str) -> None:
        self.messages.append(message)


class FixedRun:
    """Data, model and batches of one run, and the training state that every measurement starts from.

    That is the state at a run's first outer step: after K steps of multi-task learning.

    Args:
        spec: The run; schedules, logging and checkpoints are switched off.
        registry: The plugins found.
    """

    def __init__(self, spec: RunSpec, registry: Registry) -> None:
        self.registry = registry
        self.spec = varied(registry, spec, STEADY)
        self.watch = _Watch()
        self.built = built = build_run(self.spec, registry, [self.watch])
        self.hooks, self.model = CountedHooks(built.hooks), built.model
        self.context, self.spec = built.context, built.context.spec
        self.device = self.context.device
        data = built.data
        self.batches = FixedBatches.of(data.train, self.device)
        held_out = None if data.held_out is None else FixedBatches.of(data.held_out, self.device)
        self.data = dataclasses.replace(data, train=self.batches, held_out=held_out, validation=None, test=None)
        self.reference = Stepper(self, self.vary({"combiner": "sum"}))
        self.reference.steps(self.spec.bilevel.every)
        self._start = Snapshot(self.state())

    def vary(self, settings: Mapping[str, Any]) -> RunSpec:
        """Return the description of the run with other settings, checked."""
        return varied(self.registry, self.spec, settings)

    def stepper(
        self, settings: Mapping[str, Any], *, combiner: Combiner | None = None, data: Data | None = None
    ) -> Stepper:
        """Return a stepper of the run with other settings; all steppers share the model and the optimiser's state.

        Args:
            settings: Maps a dotted setting to its value.
            combiner: The combiner to train; None: a new one.
            data: Source of the training batches; None: the fixed batches.
        """
        stepper = Stepper(self, self.vary(settings), combiner=combiner, data=data)
        stepper.trainer.optimizer.state = self.reference.trainer.optimizer.state
        return stepper

    def restore(self) -> None:
        """Restore weights, buffers and the optimiser's state of the common start."""
        self._start.restore()
        for parameter in self.model.parameters():
            parameter.grad = None

    def seed(self, step: int) -> None:
        """Seed all generators as the trainer does before a step."""
        seed_everything(derive(self.spec.seed, "step", step), self.context.generator)

    def losses(self, batch: Any, context: RunContext | None = None) -> dict[str, Tensor]:
        """Return the losses of a batch as the trainer evaluates them."""
        dtype = autocast_dtype(self.spec.train.precision)
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            return self.hooks.losses(self.model, batch, context or self.context)

    def describe(self) -> dict[str, Any]:
        """Return a short description of what is measured."""
        spec = self.spec
        return {
            "backbone": spec.backbone,
            "task": spec.task,
            "dataset": spec.dataset,
            "losses": list(spec.losses),
            "combiner": spec.combiner,
            "batch_size": spec.train.batch_size,
            "precision": spec.train.precision,
            "compile": spec.train.compile,
            "optimizer": spec.train.optimizer,
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
        }

    def held_mib(self) -> float:
        """Return the memory of weights, buffers and the optimiser's state in MiB."""
        return sum(live.nbytes for live in self.state()) / MIB

    def double(self) -> None:
        """Convert everything to float64 from the common start; this cannot be undone."""
        self.restore()
        self.model.double()
        self.batches = self.batches.double()
        self.data = dataclasses.replace(self.data, train=self.batches)
        self.reference.trainer.optimizer.state.clear()
        self._start = Snapshot(self.state())

    def state(self) -> list[Tensor]:
        """Return every tensor that training changes, except gradients."""
        moments = [
            value
            for state in self.reference.trainer.optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        ]
        return [*self.model.parameters(), *self.model.buffers(), *moments]


class Stepper:
    """Takes training steps with one variant of the run.

    Args:
        run: Provides model and batches.
        spec: Description of the variant.
        combiner: The combiner to train; None: a new one.
        data: Source of the training batches; None: the fixed batches.
    """

    def __init__(
        self, run: FixedRun, spec: RunSpec, *, combiner: Combiner | None = None, data: Data | None = None
    ) -> None:
        self.run, self.spec = run, spec
        built = run.built
        wrapping.check(spec, built.ranks)
        scheme = building.scheme_of(run.registry, spec)
        estimator = building.estimator_of(run.registry, spec)
        building.check(spec, built.ranks, scheme, estimator)
        self.combiner = self._new_combiner() if combiner is None else combiner
        self.trainer = Trainer(
            run.hooks,
            dataclasses.replace(run.context, spec=spec),
            run.data if data is None else data,
            model=run.model,
            combiner=self.combiner,
            scheme=scheme,
            estimator=estimator,
            ranks=built.ranks,
            sharing=built.sharing,
            blocks=built.blocks,
        )
        self.trainer.bilevel.estimator_in_use.measured_alone()
        self._combiner_start = Snapshot(list(self.combiner.state_dict(keep_vars=True).values()))
        self._settled = not estimator.state_dict()

    def _new_combiner(self) -> Combiner:
        """Build the combiner; variants with the same combiner start from the same values."""
        info = self.run.registry.combiner(self.spec.combiner)
        self.run.seed(0)
        built: Combiner = load_object(info.factory)(self.spec.losses, **self.spec.combiner_options)
        kind = next((p.dtype for p in self.run.model.parameters() if p.is_floating_point()), torch.float32)
        return built.to(self.run.device, torch.float64 if kind == torch.float64 else None)

    @property
    def every(self) -> int:
        """K, the number of steps in a cycle."""
        return self.spec.bilevel.every

    @property
    def estimator(self) -> str | None:
        """The estimator that computes g; None if the variant takes no outer steps."""
        return self._used if self.trainer.outer is not None else None

    @property
    def _used(self) -> str:
        """Name of the estimator that computes g; ``auto`` if it has not chosen yet."""
        return self.trainer.bilevel.estimator_in_use.name

    def steps(self, number: int) -> None:
        """Take training steps as a run does."""
        self.trainer.total_steps = self.trainer.step + number
        self.trainer.fit()

    def cycle(self) -> None:
        """Take K steps, of which exactly one has an outer step."""
        self.steps(self.every)

    def at_outer_step(self) -> None:
        """Return to the common start, where the next step has an outer step (if the variant takes any)."""
        run, trainer = self.run, self.trainer
        run.restore()
        if trainer.bilevel.steps == 0:
            with torch.no_grad():
                run.seed(0)
                values = torch.stack([loss.float() for loss in run.losses(run.batches[0]).values()])
            self.combiner.prepare(values)
            self._combiner_start = Snapshot(list(self.combiner.state_dict(keep_vars=True).values()))
            run.restore()
        trainer.bilevel.count_from(self.every, 0)
        # With outer_batch=replay the outer step follows the inner step, at a certain phase of the cycle.
        replay = self.spec.bilevel.outer_batch == "replay"
        trainer.state.step = self.every + (self.spec.bilevel.phase % self.every if replay else 0)

    def one_step(self) -> None:
        """Take one training step."""
        self.steps(1)

    def find(self) -> Found:
        """Return the result of an outer step from the common start, which includes the combiner.

        The first call takes another outer step before it, in which ``auto`` chooses an estimator and differences choose
        their step size.
        """
        first = [] if self._settled else self._from_start().messages
        self._settled = True
        found = self._from_start()
        return dataclasses.replace(found, messages=(*first, *found.messages))

    def _from_start(self) -> Found:
        """Take one training step with an outer step from the common start."""
        assert self.trainer.outer is not None
        self._combiner_start.restore()
        self.trainer.outer.state.clear()
        self.at_outer_step()
        return self.observe()

    def observe(self) -> Found:
        """Take one training step that includes an outer step, and return its result."""
        trainer, watch = self.trainer, self.run.watch
        assert trainer.outer is not None
        watch.record, watch.messages = None, []
        gradients: list[Tensor] = []
        kept: list[bool] = []
        before = Snapshot(list(self.run.model.parameters()))
        handles = [
            trainer.outer.register_step_pre_hook(lambda optimizer, *_: gradients.append(_flat_gradient(optimizer))),
            trainer.optimizer.register_step_pre_hook(lambda *_: kept.append(before.unchanged())),
        ]
        try:
            self.steps(1)
        finally:
            for handle in handles:
                handle.remove()
        record: StepRecord | None = watch.record
        assert record is not None
        assert record.gradient_products is not None
        products = torch.tensor(list(record.gradient_products.values()), dtype=torch.float64)
        gradient = gradients[0] if gradients else None
        return Found(products, gradient, self._used, tuple(watch.messages), all(kept))

    def count(self) -> Operations:
        """Take one cycle from the start and return the operations it took."""
        self.at_outer_step()
        flops = not self.spec.train.compile
        return count(self.cycle, self.run.hooks, self.run.model.parameters(), flops=flops)

    def peak(self, steps: int) -> float | None:
        """Take steps from the common start and return their peak memory above the memory at the start, in MiB."""
        self.at_outer_step()
        return peak_memory(lambda: self.steps(steps), self.run.device)


def varied(registry: Registry, spec: RunSpec, settings: Mapping[str, Any]) -> RunSpec:
    """Return `spec` with other settings (by dotted name), checked as if the user had given them.

    Raises:
        UserError: If they are not valid or conflict.
    """
    return resolve(registry, config=spec.model_dump(mode="json"), flags=settings)


def _flat_gradient(optimizer: torch.optim.Optimizer) -> Tensor:
    parts = [p.grad if p.grad is not None else torch.zeros_like(p) for g in optimizer.param_groups for p in g["params"]]
    return torch.cat([part.detach().double().flatten().cpu() for part in parts])
