"""The life of a run: from a complete description to files on disk."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meltr.engine.built_run import BuiltRun, build_run
from meltr.engine.checkpoints import Checkpoints, load_backbone
from meltr.engine.meter import peak_memory_mb
from meltr.engine.recovery import check
from meltr.engine.resuming import Resumed
from meltr.engine.stop_requests import StopRequests
from meltr.engine.trainer import Trainer
from meltr.environment import versions
from meltr.errors import UserError
from meltr.files import write_json, write_lines
from meltr.folders.checkpoint_folder import BEST
from meltr.folders.run_folder import RunFolder
from meltr.observers.jsonl import MetricsWriter
from meltr.parallel.ranks import Ranks, joined
from meltr.specs import RunSpec

if TYPE_CHECKING:
    from meltr.plugins import Registry

MEASURED = ("seconds", "wall_seconds", "time", "bound_by", "examples_per_second", "peak_memory_mb", "memory_mb")
"""Fields of ``results.json`` and ``metrics.jsonl`` that differ between two equal runs; all others are the same."""


def execute(
    spec: RunSpec,
    *,
    run_dir: Path | None,
    registry: Registry,
    observers: Sequence[object] = (),
    resume: bool = False,
    fast_dev_run: bool = False,
    ranks: Ranks | None = None,
    from_scratch: bool = False,
    stop: StopRequests | None = None,
) -> dict[str, Any]:
    """Train, choose the best checkpoint on the validation split, test it, and write the results.

    Args:
        spec: The complete description of the run.
        run_dir: Its folder; created if missing. None: a temporary folder, which is removed.
        registry: The plugins found.
        observers: Other objects with observer hooks.
        resume: Continue from the last whole checkpoint in `run_dir` (from the start if it never wrote one).
        fast_dev_run: Run two outer steps and a short evaluation, and keep nothing.
        ranks: The processes of the run; None: this process, or those that torchrun started.
        from_scratch: With `resume`: start at step 0 if no checkpoint is whole.
        stop: What may ask the run to stop; None: nothing.

    Returns:
        The content of ``results.json``.

    Raises:
        MeltrError: For every known kind of failure; see `meltr.errors`.
        StoppedRun: If `stop` asked for it.
    """
    if fast_dev_run:
        spec = _shortened(spec)
    kept = None if fast_dev_run else run_dir
    with contextlib.ExitStack() as stack:
        group = ranks or stack.enter_context(joined(spec.device, timeout=spec.train.rank_timeout))
        place = kept
        if place is None and group.is_first:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="meltr-")))
        folder = RunFolder(group.broadcast_object(place))
        for observer in observers:
            if callable(getattr(observer, "close", None)):
                stack.callback(observer.close)  # type: ignore[attr-defined]
        built = build_run(spec, registry, observers if group.is_first else (), run_dir=kept, ranks=group)
        if group.is_first and not (resume and folder.was_started):
            folder.create(spec)
        resumed = Resumed(folder, from_scratch=from_scratch) if resume else None
        results = _train(built, folder, resumed, stop)
        return results if kept else {**results, "run": None}


def _train(built: BuiltRun, folder: RunFolder, resumed: Resumed | None, stop: StopRequests | None) -> dict[str, Any]:
    started = time.perf_counter()
    context, hooks = built.context, built.hooks
    checkpoints = Checkpoints(folder.checkpoints, keep=context.spec.train.keep_checkpoints)
    trainer = Trainer(
        hooks,
        context,
        built.data,
        model=built.model,
        combiner=built.combiner,
        scheme=built.scheme,
        estimator=built.estimator,
        checkpoints=checkpoints,
        ranks=built.ranks,
        sharing=built.sharing,
        blocks=built.blocks,
        stop=stop,
    )
    if resumed is not None:
        resumed.load(trainer, checkpoints)
    first = built.ranks.is_first
    with _metrics(folder, trainer.step if resumed else None) if first else contextlib.nullcontext() as metrics:
        trainer.metrics = metrics
        if first:
            write_json(folder.data, {"meta": built.data.meta, "left_out": built.data.left_out})
            hooks.run_start(context, built.data)
            left_out = [f"without the loss {name}: {why}" for name, why in built.data.left_out.items()]
            for line in (*context.notes, *left_out):
                hooks.message(context, line)
        if resumed is not None and first:
            for line in resumed.warnings:
                hooks.message(context, line, "warning")
            hooks.message(context, f"resumed at step {trainer.step} of {trainer.total_steps}")
        trainer.fit()
        results = _finish(built, trainer, checkpoints, folder, started=started)
    if first:
        write_json(folder.results, results)
        hooks.run_end(context, results)
    return results


@contextlib.contextmanager
def _metrics(folder: RunFolder, resume_step: int | None) -> Iterator[MetricsWriter]:
    writer = MetricsWriter(folder.metrics, resume_step=resume_step)
    try:
        yield writer
    finally:
        writer.close()


def _finish(
    built: BuiltRun, trainer: Trainer, checkpoints: Checkpoints, folder: RunFolder, *, started: float
) -> dict[str, Any]:
    """Test the best checkpoint and collect the results."""
    context, spec, spent = built.context, built.context.spec, trainer.clock.spent
    best = checkpoints.chosen(BEST)
    hint = f"Bring it back, or train again: meltr run --config {folder.spec}"
    built.ranks.decide(lambda: check(checkpoints, best, BEST, hint=hint))
    load_backbone(best, built.model)
    test = None
    if built.data.test is not None:
        evaluation = trainer.evaluate(built.data.test)
        trainer.record_evaluation("test", evaluation)
        test = evaluation.summary()
        if evaluation.predictions and built.ranks.is_first:
            write_lines(folder.predictions_of("test"), evaluation.predictions)
    return {
        "run": folder.path.name,
        "backbone": spec.backbone,
        "task": spec.task,
        "dataset": spec.dataset,
        "combiner": spec.combiner,
        "seed": spec.seed,
        "metric": context.task.metrics[0],
        "higher_is_better": context.task.higher_is_better,
        "losses": list(context.losses),
        "validation": trainer.state.best_evaluation,
        "test": test,
        "steps": trainer.step,
        "outer_steps": trainer.bilevel.outer_steps,
        "outer_share": trainer.bilevel.outer_share,
        "estimator": trainer.bilevel.estimator_in_use.name if trainer.outer is not None else None,
        "seconds": round(spent.training, 3),
        "time": spent.summary(),
        "bound_by": spent.bound_by,
        "wall_seconds": round(time.perf_counter() - started, 3),
        "examples_per_second": round(trainer.step * trainer.batch_size / max(spent.training, 1e-9), 2),
        "peak_memory_mb": round(peak_memory_mb(context.device), 1),
        "device": str(context.device),
        "processes": built.ranks.size,
        "data": dict(built.data.meta),
        **({"skipped_items": len(trainer.state.skipped)} if trainer.state.skipped else {}),
        "spec": spec.model_dump(mode="json"),
        "plugin": built.plugin,
        "versions": versions(),
    }


def evaluate_run(
    run_dir: Path,
    *,
    registry: Registry,
    split: str = "test",
    checkpoint: str = "best",
    device: str | None = None,
    data_root: Path | None = None,
    allow_missing: bool = False,
    say: Callable[[str], object] | None = None,
) -> dict[str, Any]:
    """Evaluate a checkpoint of a run on a split; writes ``evaluation-<split>.json`` into the run folder.

    With `allow_missing`, or if the run had it, items whose files are missing or broken are skipped; the result counts
    them in ``skipped_items`` and names them in ``skipped_item_reasons``. With `say`, a folder that cannot be written
    (another user's run) is no error: it is told why, and the results are returned only.

    Raises:
        UserError: If the run, its checkpoint, its data or the split is missing.
    """
    folder = RunFolder(run_dir)
    stored = folder.read_spec()
    changes: dict[str, Any] = {"device": device or stored.device}
    if data_root is not None:
        changes["data_root"] = data_root
    if allow_missing:
        changes["data"] = stored.data.model_copy(update={"allow_missing": True})
    spec = stored.model_copy(update=changes)
    checkpoints = Checkpoints(folder.checkpoints)
    path = checkpoints.chosen(checkpoint)
    check(checkpoints, path, checkpoint)
    built = build_run(spec, registry, run_dir=folder.path, trained=True)
    chosen = {"validation": built.data.validation, "test": built.data.test}.get(split)
    if chosen is None:
        raise UserError(f"{spec.dataset} has no split {split!r}.", "Valid choices: validation, test.")
    load_backbone(path, built.model)
    evaluation = built.hooks.evaluate(built.model, chosen, built.context)
    results = {
        "run": folder.path.name,
        "split": split,
        "checkpoint": path.name,
        "metric": built.context.task.metrics[0],
        **evaluation.summary(),
        **({"skipped_item_reasons": list(evaluation.skipped_items.values())} if evaluation.skipped_items else {}),
    }
    try:
        write_json(folder.evaluation_of(split), results)
        if evaluation.predictions:
            write_lines(folder.predictions_of(split), evaluation.predictions)
    except OSError as error:
        if say is None:
            raise
        say(f"the results are not stored: {folder.path} cannot be written ({error.strerror or error})")
    return results


def _shortened(spec: RunSpec) -> RunSpec:
    steps = 2 * spec.bilevel.every + 1
    train = spec.train.model_copy(
        update={"epochs": steps, "max_steps": steps, "eval_every": steps, "log_every": 1, "checkpoint_every": None}
    )
    bilevel = spec.bilevel.model_copy(update={"budget": None})  # so that a short run takes outer steps
    data = spec.data.model_copy(update={"eval_limit": min(spec.data.eval_limit or 256, 256)})
    return spec.model_copy(update={"train": train, "bilevel": bilevel, "data": data})
