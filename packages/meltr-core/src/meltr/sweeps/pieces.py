"""The runs of a sweep: where each lies, whether it is done, and the command that does it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from meltr.errors import UserError
from meltr.folders.run_folder import RunFolder, seed_folder
from meltr.plugins import Registry
from meltr.settings import difference, resolve, show
from meltr.specs import RunSpec
from meltr.sweeps.plan import Point, Sweep

State = Literal["done", "begun", "new"]

NEUTRAL = frozenset(
    {"device", "data_root", "data.download", "plugins", "train.rank_timeout", "train.threads", "train.log_every"}
    | {"train.checkpoint_every", "train.keep_checkpoints"}
)
"""Settings that do not change what a run measures."""

_OPTIONS = {"recipe": "--recipe", "backbone": "--backbone", "task": "--task", "dataset": "--dataset"}
_OPTIONS |= {"combiner": "--combiner", "fidelity": "--fidelity"}


@dataclass(frozen=True)
class Given:
    """What the user gives to all runs of a sweep.

    Args:
        root: The folder of the sweep's runs.
        data_root: The folder of the data set.
        sample: Use the synthetic sample.
        device: The device; None: that of the settings.
        plugins: Files given with ``--plugin``.
    """

    root: Path
    data_root: Path | None = None
    sample: bool = False
    device: str | None = None
    plugins: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Piece:
    """One run of a sweep.

    Args:
        point: Its settings.
        seed: Its seed.
        folder: Its folder.
        spec: Its description.
        given: What the user gave.
    """

    point: Point
    seed: int
    folder: Path
    spec: RunSpec
    given: Given

    @property
    def name(self) -> str:
        """How messages name it."""
        return f"{self.point.name}, seed {self.seed}"

    def words(self, *, begun: bool) -> list[str]:
        """Return the arguments of ``meltr`` that start the run, or go on with it."""
        if begun:
            return ["run", "--resume", str(self.folder)]
        words = ["run", *setting_words(self.point.settings), "--seed", str(self.seed)]
        words += ["--data-root", str(self.given.data_root)] if self.given.data_root else []
        words += ["--sample"] if self.given.sample else []
        words += ["--device", self.given.device] if self.given.device else []
        for file in self.given.plugins:
            words += ["--plugin", str(file)]
        return [*words, "--output-dir", str(self.folder.parent), "--name", self.folder.name]

    def command(self, *, begun: bool) -> str:
        """Return the same as one line for a shell."""
        return shlex.join(["meltr", *self.words(begun=begun)])

    def state(self) -> State:
        """Return whether the run is done, begun, or neither.

        Raises:
            UserError: If the folder holds another run.
        """
        folder = RunFolder(self.folder)
        if not folder.was_started:
            return "new"
        changed = [key for key in difference(folder.read_spec(), self.spec) if key not in NEUTRAL]
        if changed:
            hint = "Give the sweep another --name, or remove that folder."
            message = f"{self.folder} holds a run with other settings than the sweep has now: {', '.join(changed)}"
            raise UserError(message, hint)
        return "begun" if folder.read_results() is None else "done"


def setting_words(settings: Mapping[str, Any]) -> list[str]:
    """Return settings as options of ``meltr run``."""
    words = []
    for key, value in settings.items():
        words += [_OPTIONS[key], str(value)] if key in _OPTIONS else ["--set", f"{key}={_typed(value)}"]
    return words


def _typed(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (list, tuple, dict)) else show(value)


def pieces_of(registry: Registry, sweep: Sweep, points: Sequence[Point], given: Given) -> list[Piece]:
    """Return the runs of a sweep, checked: every setting of every point is valid.

    Raises:
        UserError: If a setting is not valid; the message names the point.
    """
    pieces = []
    for point in points:
        spec = spec_of(registry, point, given)
        for seed in sweep.seeds:
            folder = seed_folder(given.root / point.name, seed).path
            pieces.append(Piece(point, seed, folder, spec.model_copy(update={"seed": seed}), given))
    return pieces


def spec_of(registry: Registry, point: Point, given: Given) -> RunSpec:
    """Return the description of a point's run, with seed 0.

    Raises:
        UserError: If a setting is not valid.
    """
    config = {"preset" if key == "recipe" else key: value for key, value in point.settings.items()}
    flags = {
        "sample": given.sample or None,
        "device": given.device,
        "data_root": str(given.data_root) if given.data_root else None,
        "seed": 0,
    }
    flags = {key: value for key, value in flags.items() if value is not None}
    chosen = {key: config.pop(key) for key in list(config) if key in ("backbone", "task", "dataset", "preset")}
    try:
        return resolve(registry, config=None, flags={**config, **flags}, plugins=given.plugins, **chosen)
    except UserError as error:
        raise UserError(f"{point.name}: {error.message}", error.hint) from error
