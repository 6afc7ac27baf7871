"""Calls of the run-tier hooks, with checks of every return value; errors name the plugin, the hook and the loss."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pluggy
import torch
from torch import Tensor, nn

from meltr.blocks import find_blocks
from meltr.context import BatchSource, Data, Evaluation, Prediction, PredictRequest, RunContext, StepRecord
from meltr.engine.batches import slice_batch
from meltr.errors import MeltrError, PluginError
from meltr.files import encode
from meltr.optim.building import autocast_dtype, parameter_groups
from meltr.plugins.blame import blamed, homes


class Hooks:
    """The adapter and the observers of one run.

    Args:
        manager: Plugin manager with exactly one adapter and any number of observers.
        plugin: Name of the backbone, for messages.
    """

    def __init__(self, manager: pluggy.PluginManager, plugin: str) -> None:
        self._hook = manager.hook
        self._homes = homes(manager)
        self.plugin = plugin

    def build_data(self, context: RunContext) -> Data:
        """Call `build_data` and check what it returns."""
        with self._blamed("build_data"):
            data = self._hook.build_data(context=context)
        if not isinstance(data, Data):
            raise self._error("build_data", f"returned {type(data).__name__}, expected meltr.Data")
        if not isinstance(data.train, BatchSource):
            raise self._error("build_data", f"train is {type(data.train).__name__}, expected size, len() and batches()")
        if len(data.train) < 1:
            raise self._error("build_data", "train has no batches")
        if context.spec.bilevel.outer_batch == "held_out" and data.held_out is None:
            raise self._error("build_data", "returned no held_out batches, but outer_batch=held_out needs them")
        return data

    def build_model(self, context: RunContext, data: Data) -> nn.Module:
        """Call `build_model` and check what it returns."""
        with self._blamed("build_model"):
            model = self._hook.build_model(context=context, data=data)
        if not isinstance(model, nn.Module):
            raise self._error("build_model", f"returned {type(model).__name__}, expected torch.nn.Module")
        return model

    def parameter_groups(self, model: nn.Module, context: RunContext) -> list[dict[str, Any]]:
        """Call the optional `parameter_groups` and check what it returns."""
        with self._blamed("parameter_groups"):
            groups = self._hook.parameter_groups(model=model, context=context)
        if groups is not None and not all(isinstance(g, Mapping) and "params" in g for g in groups):
            raise self._error("parameter_groups", "must return mappings with a 'params' entry")
        try:
            return parameter_groups(model, groups)
        except ValueError as error:
            raise self._error("parameter_groups", str(error)) from error

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """Call the optional `model_blocks`, or find the blocks."""
        with self._blamed("model_blocks"):
            blocks = self._hook.model_blocks(model=model)
        if blocks is None:
            return find_blocks(model)
        inside = {id(module) for module in model.modules()}
        if not all(isinstance(block, nn.Module) and id(block) in inside for block in blocks):
            raise self._error("model_blocks", "must return modules of the model")
        return list(blocks)

    def slice_batch(self, batch: Any, start: int, stop: int) -> Any:
        """Call the optional `slice_batch`, or slice tensors and lists."""
        with self._blamed("slice_batch"):
            part = self._hook.slice_batch(batch=batch, start=start, stop=stop)
        return slice_batch(batch, start, stop) if part is None else part

    def check_parts(self, fingerprints: Sequence[str]) -> None:
        """Check, by fingerprints, that the processes got different parts of a batch."""
        if len(set(fingerprints)) == 1:
            raise self._error(
                "build_data",
                f"returned the same training batch in all {len(fingerprints)} processes; each must get its own part "
                "(context.rank of context.world_size, see meltr.data.loader.LoaderBatches)",
            )

    def losses(self, model: nn.Module, batch: Any, context: RunContext) -> dict[str, Tensor]:
        """Call `compute_task_losses`; check names, order, shape, type, device and gradient."""
        with self._blamed("compute_task_losses"):
            losses = self._hook.compute_task_losses(model=model, batch=batch, context=context)
        hook = "compute_task_losses"
        if not isinstance(losses, Mapping):
            raise self._error(hook, f"returned {type(losses).__name__}, expected a mapping of names to tensors")
        if tuple(losses) != context.losses:
            if sorted(losses) == sorted(context.losses):
                return self._checked({name: losses[name] for name in context.losses}, context)
            raise self._error(hook, f"returned the losses {list(losses)}, expected {list(context.losses)}")
        return self._checked(losses, context)

    def _checked(self, losses: Mapping[str, Any], context: RunContext) -> dict[str, Tensor]:
        graph = torch.is_grad_enabled()
        for name, loss in losses.items():
            problem = None
            if not isinstance(loss, Tensor):
                problem = f"is a {type(loss).__name__}, expected a tensor"
            elif loss.dim() != 0:
                problem = f"has shape {tuple(loss.shape)}, expected a 0-dim tensor (reduce it with .mean())"
            elif not loss.is_floating_point():
                problem = f"has type {loss.dtype}, expected a floating type"
            elif loss.device.type != context.device.type:
                problem = f"lies on {loss.device}, expected {context.device}"
            elif graph and not loss.requires_grad:
                problem = "carries no gradient (detached, or computed under no_grad)"
            if problem:
                raise self._error("compute_task_losses", f"loss {name!r} {problem}")
        return dict(losses)

    def evaluate(self, model: nn.Module, data: Any, context: RunContext) -> Evaluation:
        """Call `evaluate` in eval mode without gradients; check that all metrics of the task are present."""
        with self._blamed("evaluate"), _inference(model, context):
            result = self._hook.evaluate(model=model, data=data, context=context)
        if not isinstance(result, Evaluation):
            raise self._error("evaluate", f"returned {type(result).__name__}, expected meltr.Evaluation")
        self._check_metrics(result, context.task.metrics)
        return result

    def _check_metrics(self, result: Evaluation, declared: Sequence[str]) -> None:
        missing = [name for name in declared if name not in result.metrics and name not in result.skipped]
        if missing:
            raise self._error("evaluate", f"returned no {missing}; the task declares {list(declared)}")
        both = [name for name in result.skipped if name in result.metrics]
        if both:
            raise self._error("evaluate", f"returned {both}, but also lists them as skipped")
        if declared[0] in result.skipped:
            raise self._error("evaluate", f"skipped {declared[0]!r}, which chooses the best checkpoint")
        vague = {name: reason for name, reason in result.skipped.items() if not isinstance(reason, str) or not reason}
        if vague:
            raise self._error("evaluate", f"must give a reason for each skipped metric, got {vague}")
        bad = {n: v for n, v in result.metrics.items() if not isinstance(v, (int, float)) or isinstance(v, bool)}
        if bad:
            raise self._error("evaluate", f"metrics must be plain numbers, got {bad}")

    @property
    def predicts(self) -> bool:
        """Return whether the adapter has the optional hook `predict`."""
        return bool(self._hook.predict.get_hookimpls())

    def predict(self, model: nn.Module, request: PredictRequest, data: Data, context: RunContext) -> Prediction:
        """Call `predict` in eval mode without gradients; check the rows that it returns."""
        with self._blamed("predict"), _inference(model, context):
            result = self._hook.predict(model=model, request=request, data=data, context=context)
        if not isinstance(result, Prediction):
            raise self._error("predict", f"returned {type(result).__name__}, expected meltr.Prediction")
        if not result.rows:
            raise self._error("predict", "returned no rows")
        for row in result.rows:
            if not isinstance(row, Mapping):
                raise self._error("predict", f"a row is a {type(row).__name__}, expected a mapping of names to values")
            try:
                encode(row)
            except (TypeError, ValueError) as error:
                raise self._error("predict", f"a row cannot be written as JSON: {error}") from error
        return result

    def run_start(self, context: RunContext, data: Data) -> None:
        """Tell the observers that training begins."""
        with self._blamed("on_run_start"):
            self._hook.on_run_start(context=context, data=data)

    def step_end(self, context: RunContext, record: StepRecord) -> None:
        """Tell the observers about a logged step."""
        with self._blamed("on_step_end"):
            self._hook.on_step_end(context=context, record=record)

    def evaluation(self, context: RunContext, split: str, step: int, evaluation: Evaluation) -> None:
        """Tell the observers about an evaluation."""
        with self._blamed("on_evaluation"):
            self._hook.on_evaluation(context=context, split=split, step=step, evaluation=evaluation)

    def checkpoint(self, context: RunContext, path: Path) -> None:
        """Tell the observers about a checkpoint."""
        with self._blamed("on_checkpoint"):
            self._hook.on_checkpoint(context=context, path=path)

    def message(self, context: RunContext, message: str, level: str = "info") -> None:
        """Send a message to the observers."""
        with self._blamed("on_message"):
            self._hook.on_message(context=context, level=level, message=message)

    def run_end(self, context: RunContext, results: Mapping[str, Any]) -> None:
        """Tell the observers that the run ended normally."""
        with self._blamed("on_run_end"):
            self._hook.on_run_end(context=context, results=results)

    def _blamed(self, hook: str) -> contextlib.AbstractContextManager[None]:
        return blamed("an observer" if hook.startswith("on_") else f"plugin {self.plugin!r}", hook, self._homes)

    def _error(self, hook: str, problem: str) -> MeltrError:
        return PluginError(f"Plugin {self.plugin!r}, hook {hook}: {problem}.")


@contextlib.contextmanager
def _inference(model: nn.Module, context: RunContext) -> Iterator[None]:
    """Put `model` into eval mode, without gradients, under the run's precision."""
    dtype = autocast_dtype(context.spec.train.precision)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(context.device.type, dtype, enabled=dtype is not None):
            yield
    finally:
        model.train(was_training)


def better(value: float, best: float | None, higher_is_better: bool) -> bool:
    """Return whether a metric improved; NaN is never an improvement."""
    if math.isnan(value):
        return False
    return best is None or (value > best if higher_is_better else value < best)
