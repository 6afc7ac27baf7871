"""The plugin contract: every hook, typed. An implementation may take fewer arguments than its hook."""

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
"""Marks a function or method as a hook implementation: ``from meltr import hookimpl``."""


class DiscoverySpecs:
    """Hooks of the module named by the entry point. It must not import torch, because ``meltr list`` loads it."""

    @hookspec
    def register_backbones(self) -> Sequence[BackboneInfo]:
        """Return the backbones that this plugin provides."""
        raise AssertionError("specification only")

    @hookspec
    def register_tasks(self) -> Sequence[TaskInfo]:
        """Return the tasks that this plugin adds."""
        raise AssertionError("specification only")

    @hookspec
    def register_datasets(self) -> Sequence[DatasetInfo]:
        """Return the data sets that this plugin adds."""
        raise AssertionError("specification only")

    @hookspec
    def register_combiners(self) -> Sequence[CombinerInfo]:
        """Return the combiners that this plugin adds."""
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
    """Hooks of the class named by `BackboneInfo.adapter`; one instance, created without arguments, serves one run."""

    @hookspec(firstresult=True)
    def build_data(self, context: RunContext) -> Data:
        """Read the data set ``context.spec.dataset`` and build its splits.

        Raises:
            meltr.UserError: If files are missing or broken; the hint says which file goes where.
        """
        raise AssertionError("specification only")

    @hookspec(firstresult=True)
    def build_model(self, context: RunContext, data: Data) -> torch.nn.Module:
        """Return the backbone with its heads, pretrained weights loaded; core moves it to ``context.device``."""
        raise AssertionError("specification only")

    @hookspec(firstresult=True)
    def parameter_groups(self, model: torch.nn.Module, context: RunContext) -> Sequence[Mapping[str, Any]]:
        """Return optimiser parameter groups; default: one group with all trainable parameters.

        A group may hold ``lr_scale`` (relative to the schedule) and ``weight_decay``. Parameters that are in no group
        are frozen.
        """
        raise AssertionError("specification only")

    @hookspec(firstresult=True)
    def model_blocks(self, model: torch.nn.Module) -> Sequence[torch.nn.Module]:
        """Return the repeated blocks of the backbone; default: found by `meltr.blocks.find_blocks`.

        Blocks are the units that ``activation_checkpointing`` recomputes and ``parallel=fsdp`` gathers one by one, and
        the boundaries of ``scope``. No block lies inside another.
        """
        raise AssertionError("specification only")

    @hookspec(firstresult=True)
    def slice_batch(self, batch: Any, start: int, stop: int) -> Any:
        """Return the examples `start` to `stop` of a batch; default: `meltr.engine.batches.slice_batch`.

        Needed for ``accumulate`` and ``outer_fraction`` if a batch is not a nested structure of tensors and lists with
        one entry per example.
        """
        raise AssertionError("specification only")

    @hookspec(firstresult=True)
    def compute_task_losses(
        self, model: torch.nn.Module, batch: Any, context: RunContext
    ) -> Mapping[str, torch.Tensor]:
        """Return the losses named in ``context.losses``: 0-dim floating-point tensors that require grad, primary first.

        Called in training mode, possibly several times for the same batch and random numbers. Take parameters from
        `model`, draw from ``context.generator`` or torch's global generator, and keep no state.
        """
        raise AssertionError("specification only")

    @hookspec(firstresult=True)
    def evaluate(self, model: torch.nn.Module, data: Any, context: RunContext) -> Evaluation:
        """Evaluate `model` (already in eval mode, no grad) on one split of `Data`."""
        raise AssertionError("specification only")

    @hookspec(firstresult=True)
    def predict(self, model: torch.nn.Module, request: PredictRequest, data: Data, context: RunContext) -> Prediction:
        """Answer a user's request to a trained run (`model` already in eval mode, no grad). Optional.

        The data set is not available: `build_data` was not called. `data`, also passed to `build_model`, holds only the
        ``meta`` and ``left_out`` of training. ``context.run_dir`` is the folder of the run.

        Raises:
            meltr.UserError: If the task cannot use an argument, an argument is missing, or a file cannot be read.
        """
        raise AssertionError("specification only")


class ObserverSpecs:
    """Hooks of objects that observe a run; any plugin module or adapter may implement them."""

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
        """Called with a line to show, such as a warning; `level` is ``info`` or ``warning``."""

    @hookspec
    def on_run_end(self, context: RunContext, results: Mapping[str, Any]) -> None:
        """Called with the content of results.json when a run ends normally."""
