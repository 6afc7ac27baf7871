"""The plugin contract: every hook, typed. A plugin may take fewer arguments than a hook offers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import torch
    import typer

    from meltr.context import Data, Evaluation, Prediction, PredictRequest, RunContext, StepRecord
    from meltr.specs import BackboneInfo, CombinerInfo, DatasetInfo, EstimatorInfo, SchemeInfo, TaskInfo

PROJECT = "meltr"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Mark a function or method as a hook: ``from meltr import hookimpl``."""


class DiscoverySpecs:
    """Hooks of the module that the entry point names. It must not import torch: ``meltr list`` loads it."""

    @hookspec
    def register_backbones(self) -> Sequence[BackboneInfo]:
        """Return the backbones that this plugin brings."""
        raise AssertionError("specification only")

    @hookspec
    def register_tasks(self) -> Sequence[TaskInfo]:
        """Return tasks that core does not know yet."""
        raise AssertionError("specification only")

    @hookspec
    def register_datasets(self) -> Sequence[DatasetInfo]:
        """Return data sets that core does not know yet."""
        raise AssertionError("specification only")

    @hookspec
    def register_combiners(self) -> Sequence[CombinerInfo]:
        """Return rules that turn the task losses into one loss."""
        raise AssertionError("specification only")

    @hookspec
    def register_schemes(self) -> Sequence[SchemeInfo]:
        """Return rules that choose the direction q of the hypergradient."""
        raise AssertionError("specification only")

    @hookspec
    def register_estimators(self) -> Sequence[EstimatorInfo]:
        """Return ways to compute g = J q."""
        raise AssertionError("specification only")

    @hookspec
    def register_commands(self, app: typer.Typer) -> None:
        """Add commands to the ``meltr`` command line."""


class AdapterSpecs:
    """Hooks of the class that `BackboneInfo.adapter` names: one instance, made without arguments, serves one run."""

    @hookspec(firstresult=True)
    def build_data(self, context: RunContext) -> Data:
        """Read the data set ``context.spec.dataset`` and cut its splits.

        Raises:
            meltr.UserError: If files are missing or broken; say which file goes where.
        """
        raise AssertionError("specification only")

    @hookspec(firstresult=True)
    def build_model(self, context: RunContext, data: Data) -> torch.nn.Module:
        """Return the backbone with its heads, pretrained weights loaded; core moves it to ``context.device``."""
        raise AssertionError("specification only")

    @hookspec(firstresult=True)
    def parameter_groups(self, model: torch.nn.Module, context: RunContext) -> Sequence[Mapping[str, Any]]:
        """Return optimiser parameter groups; default: one group with all trainable parameters.

        A group may hold ``lr_scale`` (relative to the schedule) and ``weight_decay``. Parameters in no group stay
        fixed.
        """
        raise AssertionError("specification only")

    @hookspec(firstresult=True)
    def model_blocks(self, model: torch.nn.Module) -> Sequence[torch.nn.Module]:
        """Return the repeated blocks of the backbone; default: found by `meltr.blocks.find_blocks`.

        Blocks are what ``activation_checkpointing`` evaluates again, what ``parallel=fsdp`` gathers one by one, and
        where ``scope`` cuts. No block lies inside another.
        """
        raise AssertionError("specification only")

    @hookspec(firstresult=True)
    def slice_batch(self, batch: Any, start: int, stop: int) -> Any:
        """Return the examples `start` to `stop` of a batch; default: `meltr.engine.batches.slice_batch`.

        Needed for ``accumulate`` and ``outer_fraction`` where a batch is no nest of tensors and lists with one entry
        an example.
        """
        raise AssertionError("specification only")

    @hookspec(firstresult=True)
    def compute_task_losses(
        self, model: torch.nn.Module, batch: Any, context: RunContext
    ) -> Mapping[str, torch.Tensor]:
        """Return the losses named in ``context.losses``: 0-dim floating tensors that carry grad, primary first.

        Called in training mode, more than once for the same batch and the same random numbers: take parameters from
        `model`, draw from ``context.generator`` or torch's global generator, and keep no state.
        """
        raise AssertionError("specification only")

    @hookspec(firstresult=True)
    def evaluate(self, model: torch.nn.Module, data: Any, context: RunContext) -> Evaluation:
        """Evaluate `model` (already in eval mode, no grad) on one split of `Data`."""
        raise AssertionError("specification only")

    @hookspec(firstresult=True)
    def predict(self, model: torch.nn.Module, request: PredictRequest, data: Data, context: RunContext) -> Prediction:
        """Answer what a user asks of a trained run (`model` already in eval mode, no grad). Optional.

        The data set is not there: `build_data` was not called, and `data`, which `build_model` got too, holds only the
        ``meta`` and ``left_out`` of training. ``context.run_dir`` is the folder of the run.

        Raises:
            meltr.UserError: If the task has no use for what was given, lacks something, or a file cannot be read.
        """
        raise AssertionError("specification only")


class ObserverSpecs:
    """Hooks of objects that watch a run; any plugin module may implement them, and so may an adapter."""

    @hookspec
    def on_run_start(self, context: RunContext, data: Data) -> None:
        """Called when data and model are ready, before the first step."""

    @hookspec
    def on_step_end(self, context: RunContext, record: StepRecord) -> None:
        """Called every ``train.log_every`` steps."""

    @hookspec
    def on_evaluation(self, context: RunContext, split: str, step: int, evaluation: Evaluation) -> None:
        """Called after each evaluation; `split` is ``validation`` or ``test``."""

    @hookspec
    def on_checkpoint(self, context: RunContext, path: Path) -> None:
        """Called when a checkpoint is complete on disk."""

    @hookspec
    def on_message(self, context: RunContext, level: str, message: str) -> None:
        """Called with a line worth showing: a choice made, a warning; `level` is ``info`` or ``warning``."""

    @hookspec
    def on_run_end(self, context: RunContext, results: Mapping[str, Any]) -> None:
        """Called with the content of results.json when a run ends normally."""
