"""Ask a trained run: its backbone is built from what the run folder holds, without the data set."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from meltr.context import Data, Prediction, PredictRequest, RunContext
from meltr.devices import resolve_device
from meltr.engine.checkpoints import Checkpoints, load_backbone
from meltr.engine.folder import RunFolder
from meltr.engine.hooks import Hooks
from meltr.engine.run import open_run, without_losses
from meltr.errors import PluginError, UserError
from meltr.files import decode
from meltr.parallel.ranks import Ranks
from meltr.seeding import derive, seed_everything

if TYPE_CHECKING:
    from meltr.plugins import Registry


class NoBatches:
    """Stands for the training batches where there is no data set."""

    size = 0

    def __len__(self) -> int:
        return 0

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Refuse.

        Raises:
            PluginError: Always.
        """
        raise PluginError(
            "The backbone asked for training batches, but a trained run is used without its data set.",
            "build_model and predict must do with Data.meta and the run folder.",
        )


@dataclass(frozen=True)
class TrainedRun:
    """A trained backbone that answers; made by `load_run`.

    Args:
        hooks: Its adapter.
        context: What the adapter is told.
        data: The facts of its data set, see `stored_data`.
        model: The backbone with the weights of `checkpoint`, on its device.
        checkpoint: Name of the checkpoint.
    """

    hooks: Hooks
    context: RunContext
    data: Data
    model: nn.Module
    checkpoint: str

    def predict(self, request: PredictRequest) -> Prediction:
        """Answer `request`; the same answer every time.

        Raises:
            UserError: If the run's task has no use for what was given, lacks something, or a file cannot be read.
        """
        seed_everything(derive(self.context.spec.seed, "predict"), self.context.generator)
        return self.hooks.predict(self.model, request, self.data, self.context)


def load_run(run_dir: Path, *, registry: Registry, checkpoint: str = "best", device: str | None = None) -> TrainedRun:
    """Build the backbone of a run and load a checkpoint, without the data set.

    Args:
        run_dir: Folder of one run (one seed).
        registry: Plugins found.
        checkpoint: ``best``, ``last``, or a name such as ``step-000500``.
        device: Where to; None: the run's device.

    Raises:
        UserError: If the run, its checkpoint or the facts of its data are missing, or its backbone has no `predict`.
    """
    from meltr.settings import load_spec

    folder = RunFolder(run_dir)
    if not folder.spec.exists():
        raise UserError(f"{run_dir} is not a run folder: it has no run.yaml.", "Give the folder of one run (one seed).")
    spec = load_spec(folder.spec)
    ranks = Ranks.single(resolve_device(device or spec.device))
    hooks, context = open_run(spec, registry, run_dir=run_dir, ranks=ranks)
    if not hooks.predicts:
        raise UserError(
            f"Backbone {spec.backbone!r} cannot be asked: its adapter lacks the optional hook predict.",
            f"Its metrics on the data set: meltr evaluate {run_dir}. How the hook is written: docs/plugins.md.",
        )
    data = stored_data(folder)
    context = dataclasses.replace(without_losses(data.left_out, context), weights_follow=True)
    path = Checkpoints(folder.checkpoints).chosen(checkpoint)
    seed_everything(derive(spec.seed, "model"), context.generator)
    model = hooks.build_model(context, data).to(context.device)
    load_backbone(path, model)
    return TrainedRun(hooks, context, data, model, path.name)


def stored_data(folder: RunFolder) -> Data:
    """Return a `Data` without batches and splits, its facts as they were when the run started.

    Raises:
        UserError: If the run folder does not hold them.
    """
    facts = _read(folder.data)
    if facts is not None:
        return Data(train=NoBatches(), validation=None, meta=facts["meta"], left_out=facts["left_out"])
    results = _read(folder.results)
    if results is not None and "data" in results:
        return Data(train=NoBatches(), validation=None, meta=results["data"])
    raise UserError(
        f"{folder.path} does not say what data the run was trained on: it has no {folder.data.name}.",
        f"It was started by an earlier version and did not end. Continue it: meltr run --resume {folder.path}",
    )


def _read(path: Path) -> dict[str, Any] | None:
    """Return a JSON object, None if there is no such file; UserError if it is broken."""
    try:
        content = decode(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}", "It was changed or copied incompletely.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not an object.", "It was changed.")
    return content
