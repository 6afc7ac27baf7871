"""A run of a plugin as something that can be diagnosed: its model, losses, optimiser and batches."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from meltr.autograd.buffers import preserved_buffers
from meltr.autograd.vectors import Direction
from meltr.combiners.fixed import FixedCombiner
from meltr.context import BatchSource, Data
from meltr.diagnosis.kept import Kept
from meltr.diagnosis.subject import rows_of
from meltr.engine.batches import count_examples, to_device
from meltr.engine.built_run import build_run
from meltr.engine.checkpoints import Checkpoints, load_backbone
from meltr.engine.recovery import check
from meltr.engine.trainer import Trainer
from meltr.errors import UserError
from meltr.folders.run_folder import RunFolder
from meltr.hypergradients.estimators import PerTask
from meltr.hypergradients.schemes import NoDirection
from meltr.optim.building import autocast_dtype
from meltr.seeding import derive, seed_everything
from meltr.verify.fixed_run import varied
from meltr.verify.state import ENDLESS

if TYPE_CHECKING:
    from meltr.plugins import Registry
    from meltr.specs import RunSpec

PARTS = 8
"""Parts of the held-out examples: enough to see how much the examples matter."""

HELD_OUT = 0.1
"""Share of the training examples that is held out, unless the user says otherwise."""

FAR = 2**24
"""First epoch of the batches on which gradients are compared; training never reaches it."""

STEADY: Mapping[str, Any] = {
    "combiner": "sum",
    "train.schedule": "constant",
    "train.warmup": 0,
    "train.compile": False,
    "train.cuda_graphs": False,
    "train.checkpoint_every": "none",
    "train.log_every": ENDLESS,
    "train.max_steps": "none",
    "bilevel.outer_batch": "held_out",
    "bilevel.outer_fraction": 1.0,
    "bilevel.scheme": "none",
    "bilevel.estimator": "auto",
}
"""Settings with which a step of a branch is like every other."""


def steady(registry: Registry, spec: RunSpec, *, held_out: float | None) -> RunSpec:
    """Return the run as its branches train it.

    Args:
        registry: The plugins found.
        spec: The run.
        held_out: Fraction or number of the training examples to hold out; None: those that the run itself held out,
            if its outer steps used any, else `HELD_OUT`.

    Raises:
        UserError: If the settings conflict.
    """
    own = spec.data.held_out if spec.bilevel.outer_batch == "held_out" else HELD_OUT
    return varied(registry, spec, {**STEADY, "data.held_out": own if held_out is None else held_out})


class RunSubject:
    """The branches of a run; data and model are built once.

    Args:
        spec: As `steady` returns it.
        registry: The plugins found.
        weight: Of every auxiliary loss.
        folder: Start every branch at a checkpoint of this run; None: at new weights, which differ between branches.
        checkpoint: Its name.

    Raises:
        UserError: If there is nothing to diagnose, or too few examples are held out.
    """

    def __init__(
        self, spec: RunSpec, registry: Registry, *, weight: float = 1.0, folder: Path | None, checkpoint: str = "best"
    ) -> None:
        self.weight, self._folder = weight, folder
        self.built = built = build_run(spec, registry, run_dir=folder, trained=folder is not None)
        self.context, self.model, self.hooks = built.context, built.model, built.hooks
        self.spec, self.device, self.losses = built.context.spec, built.context.device, built.context.losses
        if len(self.losses) < 2:
            gone = "; ".join(f"{name}: {why}" for name, why in built.data.left_out.items())
            raise UserError(
                f"there is only the primary loss {self.losses[0]!r}, and no auxiliary one to diagnose"
                + (f" (dropped: {gone})" if gone else ""),
                "Name the losses: --set losses=PRIMARY,OTHER. `meltr list backbones` shows them.",
            )
        if folder is not None:
            checkpoints = Checkpoints(RunFolder(folder).checkpoints)
            path = checkpoints.chosen(checkpoint)
            check(checkpoints, path, checkpoint)
            load_backbone(path, self.model)
        self.parts = self._held_out()
        self._start, self._branch = Kept(self.model), 0

    @property
    def default_steps(self) -> int:
        """As many steps as the run takes, but at most 500."""
        return min(500, self.spec.train.epochs * len(self.built.data.train))

    def begin(self, branch: int, wanted: Sequence[str]) -> RunArm:
        """Return to the start of a branch."""
        if self._folder is None and branch != self._branch:
            seed_everything(derive(self.seed_of(branch), "model"), self.context.generator)
            other = self.hooks.build_model(self.context, self.built.data).to(self.device)
            self._start.take(other)
            self._branch = branch
        self._start.restore()
        return RunArm(self, branch, tuple(wanted))

    def seed_of(self, branch: int) -> int:
        """Return the seed of a branch; the first has the run's own."""
        return derive(self.spec.seed, "branch", branch) if branch else self.spec.seed

    def seed(self, *purpose: str | int) -> None:
        """Seed all generators."""
        seed_everything(derive(self.spec.seed, *purpose), self.context.generator)

    def values(self, batch: Any, wanted: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return these losses of a batch, as training evaluates them."""
        dtype = autocast_dtype(self.spec.train.precision)
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            return self.hooks.losses(self.model, batch, self.context.with_losses(*wanted))

    def _held_out(self) -> list[Any]:
        """Return an epoch of the held-out batches on the device; few batches are cut into parts."""
        source = self.built.data.held_out
        assert source is not None  # `Hooks.build_data` has checked it
        batches = [to_device(batch, self.device) for batch in itertools.islice(source.batches(0), 4 * PARTS)]
        if len(batches) < PARTS:
            pieces = -(-PARTS // len(batches))
            batches = [part for batch in batches for part in self._cut(batch, pieces)]
        if len(batches) < 2:
            raise UserError(
                f"only {source.size} examples are held out: too few to tell anything",
                "Hold out more of the training split: --held-out 0.2.",
            )
        return batches

    def _cut(self, batch: Any, pieces: int) -> list[Any]:
        """Return a batch in pieces of at least two examples."""
        count = count_examples(batch)
        pieces = max(1, min(pieces, count // 2))
        edges = [round(count * number / pieces) for number in range(pieces + 1)]
        return [self.hooks.slice_batch(batch, start, stop) for start, stop in itertools.pairwise(edges)]


class RunArm:
    """A branch of a run that trains with some of its losses, by the run's own trainer.

    Args:
        subject: The run.
        branch: Its number.
        wanted: Names of losses, primary first.
    """

    def __init__(self, subject: RunSubject, branch: int, wanted: tuple[str, ...]) -> None:
        self._subject, self._branch = subject, branch
        spec = subject.spec.model_copy(update={"seed": subject.seed_of(branch)})
        context = dataclasses.replace(subject.context, spec=spec, losses=wanted)
        built, data = subject.built, subject.built.data
        weights = [1.0, *([subject.weight] * (len(wanted) - 1))]
        train = _Shifted(data.train, branch)
        self._trainer = Trainer(
            subject.hooks,
            context,
            Data(train=train, validation=None, meta=data.meta),
            model=subject.model,
            combiner=FixedCombiner(wanted, weights).to(subject.device),
            scheme=NoDirection(),
            estimator=PerTask(),
            ranks=built.ranks,
            sharing=built.sharing,
            blocks=built.blocks,
        )
        self._trainer.total_steps = 0

    def steps(self, number: int) -> None:
        """Take training steps."""
        self._trainer.total_steps += number
        self._trainer.fit()

    def held_out(self) -> list[float]:
        """Return the primary loss on every part of the held-out examples."""
        subject, found = self._subject, []
        subject.model.train()
        with torch.no_grad(), preserved_buffers(subject.model):
            for number, batch in enumerate(subject.parts):
                subject.seed("held out", number)
                found.append(subject.values(batch, subject.losses[:1])[subject.losses[0]].double())
        return torch.stack(found).tolist()

    def gradients(self, point: int) -> tuple[Direction, Sequence[Direction]]:
        """Return v and J at the current weights."""
        subject, branch = self._subject, self._branch
        parameters = [each for each in subject.model.parameters() if each.requires_grad]
        length = len(subject.built.data.train)
        epoch, index = divmod(point, length)
        batch = next(subject.built.data.train.batches(FAR + branch * _Shifted.EPOCHS + epoch, start=index))
        subject.model.train()
        with preserved_buffers(subject.model):
            subject.seed("v", branch, point)
            held_out = subject.parts[(branch + point) % len(subject.parts)]
            (v,) = rows_of(subject.values(held_out, subject.losses[:1]), parameters)
            subject.seed("J", branch, point)
            return v, rows_of(subject.values(to_device(batch, subject.device), subject.losses), parameters)


class _Shifted:
    """The training batches of a branch: those of other epochs than other branches see."""

    EPOCHS = 2**14

    def __init__(self, source: BatchSource, branch: int) -> None:
        self._source, self._first = source, branch * self.EPOCHS

    @property
    def size(self) -> int:
        """Number of examples."""
        return self._source.size

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self._source)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Yield the batches of an epoch of the branch."""
        return self._source.batches(self._first + epoch, start=start)
