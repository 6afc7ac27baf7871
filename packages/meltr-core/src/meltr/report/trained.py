"""The combiner of a run's last checkpoint, with the losses that the run has seen: what figures of a combiner draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from meltr.combiners.base import Combiner, GradientCombiner, sensitivities
from meltr.engine.checkpoints import Checkpoints, load_module
from meltr.errors import UserError
from meltr.folders.checkpoint_folder import CheckpointFolder
from meltr.folders.run_folder import RunFolder
from meltr.plugins import Registry, load_object
from meltr.report import series
from meltr.report.runs import Run, load_run

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Trained:
    """The combiner of a run's last checkpoint, and the losses that the run has seen.

    Args:
        name: Name of the run.
        combiner: m, in eval mode.
        names: Names of the losses, primary first.
        low: Smallest logged value of each loss, (T+1,).
        high: Largest logged value, (T+1,).
        middle: Median of the logged values, (T+1,).
        logged: The logged values of all losses, (N, T+1).
    """

    name: str
    combiner: Combiner
    names: tuple[str, ...]
    low: Floats
    high: Floats
    middle: Floats
    logged: Floats

    def response(self, losses: Floats) -> tuple[Floats, Floats]:
        """Return m(l), (N,), and the task weights a, (N, T+1), at each row of `losses`, (N, T+1)."""
        found = [sensitivities(self.combiner, row) for row in torch.from_numpy(losses).float()]
        values = np.array([float(m.detach()) for m, _ in found])
        return values, torch.stack([a for _, a in found]).double().numpy()


def load_trained(path: Path, registry: Registry) -> Trained:
    """Load the combiner of a run.

    Args:
        path: Folder of one run.
        registry: The plugins found.

    Raises:
        UserError: If the folder holds no run with a checkpoint, nothing was logged, or the combiner weighs gradients
            and is no function of the losses.
    """
    run, folder = load_run(path), RunFolder(path)
    spec = folder.read_spec()
    built = load_object(registry.combiner(spec.combiner).factory)(spec.losses, **spec.combiner_options)
    if isinstance(built, GradientCombiner):
        raise UserError(
            f"{spec.combiner!r} combines gradients, so there is no function of the losses to draw.",
            "Draw its task weights over epochs: --figure 4.",
        )
    checkpoint = CheckpointFolder(Checkpoints(folder.checkpoints).resolve("last"))
    load_module(checkpoint.combiner, built, "combiner")
    logged = _logged(run, spec.losses)
    low, middle, high = (np.asarray(each, dtype=np.float64) for each in np.percentile(logged, (0, 50, 100), axis=0))
    return Trained(run.name, built.eval(), tuple(spec.losses), low, high, middle, logged)


def _logged(run: Run, names: Sequence[str]) -> Floats:
    curves = [
        series.collect([run], "train", lambda line, name=name: (line.get("losses") or {}).get(name))  # type: ignore[misc]
        for name in names
    ]
    if any(curve is None for curve in curves):
        raise UserError(
            f"{run.path} has logged no losses yet.", "Wait for the first line, or log more often: log_every."
        )
    known = np.stack([curve.values[0] for curve in curves if curve is not None], axis=1)
    known = known[np.isfinite(known).all(axis=1)]
    if not len(known):
        raise UserError(f"{run.path} has logged no finite losses.", "Train another run.")
    return np.asarray(known, dtype=np.float64)
