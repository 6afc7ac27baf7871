"""Builds data, model and combiner of a run from its description."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from meltr.autograd.buffers import preserved_buffers
from meltr.autograd.random_state import RandomState
from meltr.combiners.base import Combiner
from meltr.context import Data, RunContext
from meltr.devices import resolve_device
from meltr.engine.batches import batch_at, micro_batches, to_device
from meltr.engine.building import check, estimator_of, scheme_of
from meltr.engine.hooks import Hooks
from meltr.engine.stored_data import stored_data
from meltr.engine.wrapping import use_deterministic, use_tf32, wrap
from meltr.errors import MeltrError, PluginError, UserError
from meltr.folders.run_folder import RunFolder
from meltr.hypergradients.estimators import Estimator
from meltr.hypergradients.schemes import Scheme
from meltr.observers.logfile import LogObserver
from meltr.optim.building import autocast_dtype
from meltr.parallel.ranks import Ranks
from meltr.parallel.sharing import Sharing
from meltr.plugins import Registry, load_object, run_manager
from meltr.seeding import derive, seed_everything
from meltr.specs import CombinerInfo, DatasetInfo, RunSpec


@dataclass
class BuiltRun:
    """Data, model and combiner of a run, on their device, with its scheme and estimator."""

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


def build_run(
    spec: RunSpec,
    registry: Registry,
    observers: Sequence[object] = (),
    *,
    run_dir: Path | None = None,
    ranks: Ranks | None = None,
    trained: bool = False,
) -> BuiltRun:
    """Build data, model and combiner, each from its own seed, so that runs with other combiners start identically.

    Args:
        spec: The complete description of the run.
        registry: The plugins found.
        observers: Objects with observer hooks.
        run_dir: Folder of the run.
        ranks: The processes of the run; None: this process alone.
        trained: A checkpoint of the run in `run_dir` will be loaded: use the losses that the model was trained with,
            and log nothing.
    """
    ranks = ranks or Ranks.single(resolve_device(spec.device))
    logs = [] if run_dir is None or trained or not ranks.is_first else [LogObserver()]
    hooks, context = open_run(spec, registry, [*observers, *logs], run_dir=run_dir, ranks=ranks)
    context = dataclasses.replace(context, weights_follow=trained)
    scheme, estimator = scheme_of(registry, spec), estimator_of(registry, spec)
    check(spec, ranks, scheme, estimator)
    combiner_info, device, generator = registry.combiner(spec.combiner), context.device, context.generator
    seed_everything(derive(spec.seed, "data"), generator)
    data = _read(hooks, context, registry.dataset(spec.dataset))
    if trained and run_dir is not None:
        data = _left_out_as_trained(data, RunFolder(run_dir))
    context = without_losses(data.left_out, context)
    if data.left_out and combiner_info.learned and len(context.losses) < 2:
        raise UserError(
            f"Only the primary loss {context.losses[0]!r} is left, but {spec.combiner!r} combines several losses. "
            f"Dropped: {'; '.join(f'{name}: {why}' for name, why in data.left_out.items())}.",
            "Provide what is missing, or train on the primary loss alone: --combiner primary.",
        )
    seed_everything(derive(spec.seed, "model"), generator)
    model = hooks.build_model(context, data).to(device)
    blocks = hooks.blocks(model)
    model, sharing = wrap(model, spec, ranks, blocks, lambda: _try_losses(hooks, model, data, context))
    seed_everything(derive(spec.seed, "combiner"), generator)
    combiner = _build_combiner(combiner_info, context, data.left_out)
    plugin = registry.owner("backbone", spec.backbone)
    return BuiltRun(
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


def _try_losses(hooks: Hooks, model: nn.Module, data: Data, context: RunContext) -> None:
    """Evaluate the losses of the first micro-batch, and leave model and generators as they were."""
    spec, training = context.spec.train, model.training
    generators = [] if context.generator is None else [context.generator]
    before = RandomState({context.device}, generators)
    dtype = autocast_dtype(spec.precision)
    batch = to_device(batch_at(data.train, 0, 0), context.device)
    part = micro_batches(batch, spec.accumulate, hooks.slice_batch)[0]
    model.train()
    try:
        with preserved_buffers(model), torch.autocast(context.device.type, dtype, enabled=dtype is not None):
            hooks.losses(model, part, context)
    finally:
        model.train(training)
        before.restore()


def _read(hooks: Hooks, context: RunContext, dataset: DatasetInfo) -> Data:
    """Call `build_data`; an adapter that fails for want of a folder need not have said so itself."""
    spec = context.spec
    try:
        return hooks.build_data(context)
    except MeltrError:
        raise
    except Exception as error:
        if dataset.embedded or spec.data_root is not None or spec.sample:
            raise
        layout = f"DIR must hold:\n{dataset.layout}" if dataset.layout else "The plugin does not tell what it holds."
        hint = f"Give --data-root DIR. {layout}"
        raise UserError(f"{dataset.name} needs its files, and --data-root was not given", hint) from error


def _left_out_as_trained(data: Data, folder: RunFolder) -> Data:
    """Return the data with the losses dropped that training dropped, whatever is available now."""
    return dataclasses.replace(data, left_out=stored_data(folder).left_out) if folder.data.exists() else data


def _build_combiner(info: CombinerInfo, context: RunContext, left_out: Mapping[str, str]) -> Combiner:
    where = f"Combiner {info.name!r} ({info.factory})"
    try:
        combiner = load_object(info.factory)(context.losses, **context.spec.combiner_options)
    except ValueError as error:
        if not left_out:
            raise
        gone = "; ".join(f"without {name}: {why}" for name, why in left_out.items())
        raise UserError(
            f"{info.name!r} cannot be built for the remaining losses, {', '.join(context.losses)} ({gone}): {error}.",
            f"Use --set losses={','.join(context.losses)}, and adapt the combiner's settings to these losses.",
        ) from error
    if not isinstance(combiner, Combiner):
        raise PluginError(f"{where} returned {type(combiner).__name__}, expected a meltr.Combiner.")
    if combiner.learned != info.learned:
        raise PluginError(f"{where} has learned={combiner.learned}, but was registered with {info.learned}.")
    return combiner


def without_losses(left_out: Mapping[str, str], context: RunContext) -> RunContext:
    """Return the context without the dropped losses.

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
    """Load the adapter of a run; return its hooks and its context."""
    backbone = registry.backbone(spec.backbone)
    hooks = Hooks(run_manager(registry, backbone, observers), spec.backbone)
    use_tf32(spec.train.tf32)
    use_deterministic(spec.train.deterministic)
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
