"""The life of a run: from a complete description to artefacts on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from meltr.combiners.base import Combiner
from meltr.context import Data, RunContext
from meltr.devices import resolve_device
from meltr.engine.building import check, estimator_of, scheme_of
from meltr.engine.checkpoints import Checkpoints, load_backbone
from meltr.engine.folder import RunFolder, versions
from meltr.engine.hooks import Hooks
from meltr.engine.meter import peak_memory_mb
from meltr.engine.trainer import Trainer
from meltr.engine.wrapping import use_tf32, wrap
from meltr.errors import PluginError, UserError
from meltr.files import write_json, write_lines
from meltr.hypergradients.estimators import Estimator
from meltr.hypergradients.schemes import Scheme
from meltr.observers.jsonl import MetricsWriter
from meltr.observers.logfile import LogObserver
from meltr.parallel.ranks import Ranks, joined
from meltr.parallel.sharing import Sharing
from meltr.seeding import derive, seed_everything
from meltr.specs import CombinerInfo, RunSpec

if TYPE_CHECKING:
    from meltr.plugins import Registry


@dataclass
class Prepared:
    """Data, model and combiner of a run, on their device, and its scheme and estimator."""

    hooks: Hooks
    context: RunContext
    data: Data
    model: nn.Module
    combiner: Combiner
    scheme: Scheme
    estimator: Estimator
    plugin: str
    ranks: Ranks
    sharing: Sharing
    blocks: Sequence[nn.Module]


def execute(
    spec: RunSpec,
    *,
    run_dir: Path | None,
    registry: Registry,
    observers: Sequence[object] = (),
    resume: bool = False,
    fast_dev_run: bool = False,
    ranks: Ranks | None = None,
) -> dict[str, Any]:
    """Train, choose the best checkpoint on the validation split, test it, and write everything down.

    Args:
        spec: The complete description of the run.
        run_dir: Its folder; created if it is not there. None: a temporary one that is removed.
        registry: Plugins found.
        observers: Further objects with observer hooks.
        resume: Continue from the last checkpoint in `run_dir` (from the start if there is none).
        fast_dev_run: Two outer steps and a short evaluation, nothing kept.
        ranks: The processes of the run; None: this one, or those that torchrun started.

    Returns:
        The content of ``results.json``.

    Raises:
        MeltrError: For everything with a defined answer; see `meltr.errors`.
    """
    if fast_dev_run:
        spec = _shortened(spec)
    kept = None if fast_dev_run else run_dir
    with contextlib.ExitStack() as stack:
        group = ranks or stack.enter_context(joined(spec.device))
        place = kept
        if place is None and group.is_first:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="meltr-")))
        folder = RunFolder(group.broadcast_object(place))
        for observer in observers:
            if callable(getattr(observer, "close", None)):
                stack.callback(observer.close)  # type: ignore[attr-defined]
        prepared = prepare(spec, registry, observers if group.is_first else (), run_dir=kept, ranks=group)
        if group.is_first and not (resume and folder.spec.exists()):
            folder.create(spec)
        results = _train(prepared, folder, resume=resume)
        return results if kept else {**results, "run": None}


def prepare(
    spec: RunSpec,
    registry: Registry,
    observers: Sequence[object] = (),
    *,
    run_dir: Path | None = None,
    ranks: Ranks | None = None,
    trained: bool = False,
) -> Prepared:
    """Build data, model and combiner, each from its own seed, so that runs with other combiners start alike.

    Args:
        spec: The complete description of the run.
        registry: Plugins found.
        observers: Objects with observer hooks.
        run_dir: Its folder.
        ranks: The processes of the run; None: this one.
        trained: A checkpoint of the run in `run_dir` is loaded afterwards: the model gets the losses that it was
            trained with, and nothing is logged.
    """
    ranks = ranks or Ranks.single(resolve_device(spec.device))
    logs = [] if run_dir is None or trained or not ranks.is_first else [LogObserver()]
    hooks, context = open_run(spec, registry, [*observers, *logs], run_dir=run_dir, ranks=ranks)
    context = dataclasses.replace(context, weights_follow=trained)
    scheme, estimator = scheme_of(registry, spec), estimator_of(registry, spec)
    check(spec, ranks, scheme, estimator)
    combiner_info, device, generator = registry.combiner(spec.combiner), context.device, context.generator
    seed_everything(derive(spec.seed, "data"), generator)
    data = hooks.build_data(context)
    if trained and run_dir is not None:
        data = _left_out_as_trained(data, RunFolder(run_dir))
    context = without_losses(data.left_out, context)
    if data.left_out and combiner_info.learned and len(context.losses) < 2:
        raise UserError(
            f"Only the primary loss {context.losses[0]!r} is left, and {spec.combiner!r} combines several "
            f"({'; '.join(f'{name}: {why}' for name, why in data.left_out.items())}).",
            "Provide what is missing, or train on the primary loss alone: --combiner primary.",
        )
    seed_everything(derive(spec.seed, "model"), generator)
    model = hooks.build_model(context, data).to(device)
    blocks = hooks.blocks(model)
    model, sharing = wrap(model, spec, ranks, blocks)
    seed_everything(derive(spec.seed, "combiner"), generator)
    combiner = _build_combiner(combiner_info, context, data.left_out)
    plugin = registry.owner("backbone", spec.backbone)
    return Prepared(
        hooks,
        context,
        data,
        model,
        combiner.to(device),
        scheme=scheme,
        estimator=estimator,
        plugin=plugin,
        ranks=ranks,
        sharing=sharing,
        blocks=blocks,
    )


def _left_out_as_trained(data: Data, folder: RunFolder) -> Data:
    """Return the data with the losses left out that training left out, whatever is there or gone by now."""
    from meltr.engine.predicting import stored_data

    return dataclasses.replace(data, left_out=stored_data(folder).left_out) if folder.data.exists() else data


def _build_combiner(info: CombinerInfo, context: RunContext, left_out: Mapping[str, str]) -> Combiner:
    from meltr.plugins import load_object

    where = f"Combiner {info.name!r} ({info.factory})"
    try:
        combiner = load_object(info.factory)(context.losses, **context.spec.combiner_options)
    except ValueError as error:
        if not left_out:
            raise
        gone = "; ".join(f"without {name}: {why}" for name, why in left_out.items())
        raise UserError(
            f"{info.name!r} cannot be built for the losses left, {', '.join(context.losses)} ({gone}): {error}.",
            f"Write --set losses={','.join(context.losses)}, and give the combiner's settings for these.",
        ) from error
    if not isinstance(combiner, Combiner):
        raise PluginError(f"{where} returned {type(combiner).__name__}, expected a meltr.Combiner.")
    if combiner.learned != info.learned:
        raise PluginError(f"{where} has learned={combiner.learned}, but was registered with {info.learned}.")
    return combiner


def without_losses(left_out: Mapping[str, str], context: RunContext) -> RunContext:
    """Return the context without the losses that the data cannot serve.

    Raises:
        UserError: If the primary loss is among them.
    """
    spec = context.spec
    gone = [name for name in spec.losses if name in left_out]
    if not gone:
        return context
    reasons = "; ".join(f"{name}: {left_out[name]}" for name in gone)
    kept = tuple(name for name in spec.losses if name not in left_out)
    if spec.losses[0] in gone:
        raise UserError(f"The primary loss cannot be computed from these data ({reasons}).", "Choose another data set.")
    cut = spec.model_copy(update={"losses": kept})
    return dataclasses.replace(context, spec=cut, losses=tuple(n for n in context.losses if n not in left_out))


def open_run(
    spec: RunSpec, registry: Registry, observers: Sequence[object] = (), *, run_dir: Path | None, ranks: Ranks
) -> tuple[Hooks, RunContext]:
    """Load the adapter of a run; return its hooks and what they are told."""
    from meltr.plugins import load_object, run_manager

    backbone = registry.backbone(spec.backbone)
    hooks = Hooks(run_manager(registry, backbone, observers), spec.backbone)
    use_tf32(spec.train.tf32)
    if spec.train.threads is not None:
        torch.set_num_threads(spec.train.threads)
    context = RunContext(
        spec=spec,
        task=registry.task(spec.task),
        options=None if backbone.options is None else load_object(backbone.options)(**spec.options),
        device=ranks.device,
        losses=spec.losses[:1] if registry.combiner(spec.combiner).primary_only else spec.losses,
        generator=torch.Generator(ranks.device) if ranks.device.type in ("cpu", "cuda") else None,
        run_dir=run_dir,
        rank=ranks.rank,
        world_size=ranks.size,
    )
    return hooks, context


def _train(prepared: Prepared, folder: RunFolder, *, resume: bool) -> dict[str, Any]:
    started = time.perf_counter()
    context, hooks = prepared.context, prepared.hooks
    checkpoints = Checkpoints(folder.checkpoints, keep=context.spec.train.keep_checkpoints)
    start = checkpoints.resolve("last") if resume and (folder.checkpoints / "last").exists() else None
    trainer = Trainer(
        hooks,
        context,
        prepared.data,
        model=prepared.model,
        combiner=prepared.combiner,
        scheme=prepared.scheme,
        estimator=prepared.estimator,
        checkpoints=checkpoints,
        ranks=prepared.ranks,
        sharing=prepared.sharing,
        blocks=prepared.blocks,
    )
    if start is not None:
        trainer.load(start)
    first = prepared.ranks.is_first
    with _metrics(folder, trainer.step if resume else None) if first else contextlib.nullcontext() as metrics:
        trainer.metrics = metrics
        if first:
            write_json(folder.data, {"meta": prepared.data.meta, "left_out": prepared.data.left_out})
            hooks.run_start(context, prepared.data)
            left_out = [f"without the loss {name}: {why}" for name, why in prepared.data.left_out.items()]
            for line in (*context.notes, *left_out):
                hooks.message(context, line)
        if resume and first:
            hooks.message(context, f"resumed at step {trainer.step} of {trainer.total_steps}")
        trainer.fit()
        results = _finish(prepared, trainer, checkpoints, folder, started=started)
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
    prepared: Prepared, trainer: Trainer, checkpoints: Checkpoints, folder: RunFolder, *, started: float
) -> dict[str, Any]:
    """Test the best checkpoint and collect the results."""
    context, spec = prepared.context, prepared.context.spec
    load_backbone(checkpoints.chosen("best"), prepared.model)
    test = None
    if prepared.data.test is not None:
        evaluation = trainer.evaluate(prepared.data.test)
        trainer.record_evaluation("test", evaluation)
        test = evaluation.summary()
        if evaluation.predictions and prepared.ranks.is_first:
            write_lines(folder.predictions / "test.jsonl", evaluation.predictions)
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
        "validation": trainer.best_evaluation,
        "test": test,
        "steps": trainer.step,
        "outer_steps": trainer.bilevel.outer_steps,
        "estimator": trainer.bilevel.estimator.chosen or "auto" if trainer.outer is not None else None,
        "seconds": round(trainer.seconds, 3),
        "wall_seconds": round(time.perf_counter() - started, 3),
        "examples_per_second": round(trainer.step * trainer.batch_size / max(trainer.seconds, 1e-9), 2),
        "peak_memory_mb": round(peak_memory_mb(context.device), 1),
        "device": str(context.device),
        "processes": prepared.ranks.size,
        "data": dict(prepared.data.meta),
        "spec": spec.model_dump(mode="json"),
        "plugin": prepared.plugin,
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
) -> dict[str, Any]:
    """Evaluate a checkpoint of a run on a split; writes ``evaluation-<split>.json`` into the run folder.

    Raises:
        UserError: If the run, its checkpoint, its data or the split is missing.
    """
    from meltr.settings import load_spec

    folder = RunFolder(run_dir)
    if not folder.spec.exists():
        raise UserError(f"{run_dir} is not a run folder: it has no run.yaml.", "Give the folder of one run (one seed).")
    changes: dict[str, Any] = {"device": device or load_spec(folder.spec).device}
    if data_root is not None:
        changes["data_root"] = data_root
    spec = load_spec(folder.spec).model_copy(update=changes)
    checkpoints = Checkpoints(folder.checkpoints)
    path = checkpoints.chosen(checkpoint)
    prepared = prepare(spec, registry, run_dir=folder.path, trained=True)
    chosen = {"validation": prepared.data.validation, "test": prepared.data.test}.get(split)
    if chosen is None:
        raise UserError(f"{spec.dataset} has no split {split!r}.", "Valid choices: validation, test.")
    load_backbone(path, prepared.model)
    evaluation = prepared.hooks.evaluate(prepared.model, chosen, prepared.context)
    results = {
        "run": folder.path.name,
        "split": split,
        "checkpoint": path.name,
        "metric": prepared.context.task.metrics[0],
        **evaluation.summary(),
    }
    write_json(folder.path / f"evaluation-{split}.json", results)
    if evaluation.predictions:
        write_lines(folder.predictions / f"{split}.jsonl", evaluation.predictions)
    return results


def _shortened(spec: RunSpec) -> RunSpec:
    steps = 2 * spec.bilevel.every + 1
    train = spec.train.model_copy(
        update={"epochs": steps, "max_steps": steps, "eval_every": steps, "log_every": 1, "checkpoint_every": None}
    )
    data = spec.data.model_copy(update={"eval_limit": min(spec.data.eval_limit or 256, 256)})
    return spec.model_copy(update={"train": train, "data": data})
