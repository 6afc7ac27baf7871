"""Prediction with a trained run, whose backbone is built from the run folder, without the data set."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from meltr.context import Data, Prediction, PredictRequest, RunContext
from meltr.devices import resolve_device
from meltr.engine.built_run import open_run, without_losses
from meltr.engine.checkpoints import Checkpoints, load_backbone
from meltr.engine.hooks import Hooks
from meltr.engine.recovery import check
from meltr.engine.stored_data import stored_data
from meltr.errors import UserError
from meltr.folders.run_folder import RunFolder
from meltr.parallel.ranks import Ranks
from meltr.seeding import derive, seed_everything

if TYPE_CHECKING:
    from meltr.plugins import Registry


@dataclass(frozen=True)
class TrainedRun:
    """A trained backbone for prediction; created by `load_run`.

    Args:
        hooks: Its adapter.
        context: The adapter's context.
        data: Stored facts about its data set (see `stored_data`).
        model: The backbone with the weights of `checkpoint`, on its device.
        checkpoint: Name of the checkpoint.
    """

    hooks: Hooks
    context: RunContext
    data: Data
    model: nn.Module
    checkpoint: str

    def predict(self, request: PredictRequest) -> Prediction:
        """Return the prediction for `request`; the same request always gives the same prediction.

        Raises:
            UserError: If the run's task cannot use an input, an input is missing, or a file cannot be read.
        """
        seed_everything(derive(self.context.spec.seed, "predict"), self.context.generator)
        return self.hooks.predict(self.model, request, self.data, self.context)


def load_run(run_dir: Path, *, registry: Registry, checkpoint: str = "best", device: str | None = None) -> TrainedRun:
    """Build the backbone of a run and load a checkpoint, without the data set.

    Args:
        run_dir: Folder of one run (one seed).
        registry: Plugins found.
        checkpoint: ``best``, ``last``, or a name such as ``step-000500``.
        device: Device to load to; None: the run's device.

    Raises:
        UserError: If the run, its checkpoint or the facts about its data are missing, or its backbone has no `predict`.
    """
    folder = RunFolder(run_dir)
    spec = folder.read_spec()
    ranks = Ranks.single(resolve_device(device or spec.device))
    hooks, context = open_run(spec, registry, run_dir=run_dir, ranks=ranks)
    if not hooks.predicts:
        raise UserError(
            f"Backbone {spec.backbone!r} cannot predict: its adapter lacks the optional hook predict.",
            f"For metrics on the data set: meltr evaluate {run_dir}. To write the hook, see docs/plugins.md.",
        )
    data = stored_data(folder)
    context = dataclasses.replace(without_losses(data.left_out, context), weights_follow=True)
    checkpoints = Checkpoints(folder.checkpoints)
    path = checkpoints.chosen(checkpoint)
    check(checkpoints, path, checkpoint)
    seed_everything(derive(spec.seed, "model"), context.generator)
    model = hooks.build_model(context, data).to(context.device)
    load_backbone(path, model)
    return TrainedRun(hooks, context, data, model, path.name)
