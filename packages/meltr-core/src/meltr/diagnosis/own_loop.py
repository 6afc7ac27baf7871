"""A model, losses and batches of one's own as something that can be diagnosed."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from meltr.autograd.buffers import preserved_buffers
from meltr.autograd.vectors import Direction
from meltr.diagnosis.kept import Kept
from meltr.diagnosis.subject import rows_of
from meltr.errors import UserError
from meltr.seeding import derive, seed_again

Losses = Callable[..., Mapping[str, Tensor]]


class OwnLoop:
    """A subject made of a model, a loss function and batches; see `meltr.diagnose` for the arguments."""

    def __init__(
        self,
        model: nn.Module,
        losses: Losses,
        train: Iterable[Any],
        held_out: Iterable[Any],
        *,
        optimizer: Callable[[], torch.optim.Optimizer],
        start: Callable[[int], object] | None,
        weight: float,
        seed: int,
    ) -> None:
        self.model, self.compute, self.optimizer, self.weight, self.seed = model, losses, optimizer, weight, seed
        self.train, self.parts, self.start = train, list(held_out), start
        self.device = next((each.device for each in model.parameters()), torch.device("cpu"))
        self._chooses = _takes_names(losses)
        inside = {id(each) for each in model.parameters()}
        trained = [each for group in optimizer().param_groups for each in group["params"]]
        self._first = Kept(model, [each for each in trained if id(each) not in inside])
        self.parameters = self._first.parameters
        self.losses = self._names()

    def begin(self, branch: int, wanted: Sequence[str]) -> OwnArm:
        """Return to the start of a branch."""
        self._first.restore()
        if self.start is not None:
            seed_again(derive(self.seed, "start", branch))
            self.start(derive(self.seed, "start", branch))
        return OwnArm(self, branch, wanted)

    def restore(self) -> None:
        """Restore weights, buffers, gradients and modes as they were before the diagnosis."""
        self._first.give_back()

    def values(self, batch: Any, wanted: Sequence[str]) -> dict[str, Tensor]:
        """Return these losses of a batch.

        Raises:
            UserError: If the loss function does not return them.
        """
        found = self.compute(batch, tuple(wanted)) if self._chooses else self.compute(batch)
        if not isinstance(found, Mapping) or any(name not in found for name in wanted):
            got = list(found) if isinstance(found, Mapping) else type(found).__name__
            raise UserError(f"the loss function returned {got}, expected the losses {list(wanted)} by name")
        return {name: found[name].reshape(()) for name in wanted}

    def _names(self) -> tuple[str, ...]:
        """Return the names of the losses: those that the loss function returns for the first batch."""
        batch = next(iter(self.train), None)
        if batch is None:
            raise UserError("train has no batches")
        if len(self.parts) < 2:
            raise UserError(
                f"held_out has {len(self.parts)} batches: the interval has to cover other examples too",
                "Give at least two batches of examples that are not trained on; eight are better.",
            )
        seed_again(derive(self.seed, "names"))
        with torch.no_grad(), preserved_buffers(self.model):
            found = self.compute(batch, None) if self._chooses else self.compute(batch)
        if not isinstance(found, Mapping) or len(found) < 2:
            raise UserError(
                "the loss function must return a mapping with the primary loss first and at least one other",
                'For example: {"class": ..., "rotation": ...}.',
            )
        return tuple(found)


class OwnArm:
    """A branch of an `OwnLoop` that trains with some of the losses."""

    def __init__(self, loop: OwnLoop, branch: int, wanted: Sequence[str]) -> None:
        self._loop, self._branch, self._wanted = loop, branch, tuple(wanted)
        self._optimizer, self._step = loop.optimizer(), 0
        self._batches, self._others = self._endless("order"), self._endless("gradients")

    def steps(self, number: int) -> None:
        """Take training steps."""
        loop = self._loop
        for _ in range(number):
            seed_again(derive(loop.seed, "batch", self._branch, self._step))
            batch = next(self._batches)
            seed_again(derive(loop.seed, "step", self._branch, self._step))
            self._optimizer.zero_grad()
            first, *others = loop.values(batch, self._wanted).values()
            total = first + loop.weight * torch.stack(others).sum() if others else first
            if not bool(total.isfinite()):
                raise UserError(f"a loss is not finite at step {self._step} of branch {self._branch}")
            total.backward()
            self._optimizer.step()
            self._step += 1
        self._optimizer.zero_grad()

    def held_out(self) -> list[float]:
        """Return the primary loss on every held-out batch."""
        loop, found = self._loop, []
        with torch.no_grad(), preserved_buffers(loop.model):
            for number, batch in enumerate(loop.parts):
                seed_again(derive(loop.seed, "held out", number))
                found.append(loop.values(batch, loop.losses[:1])[loop.losses[0]].double())
        return torch.stack(found).tolist()

    def gradients(self, point: int) -> tuple[Direction, Sequence[Direction]]:
        """Return v and J at the current weights."""
        loop = self._loop
        parameters = loop.parameters
        batch = loop.parts[(self._branch + point) % len(loop.parts)]
        with preserved_buffers(loop.model):
            seed_again(derive(loop.seed, "v", self._branch, point))
            (v,) = rows_of(loop.values(batch, loop.losses[:1]), parameters)
            seed_again(derive(loop.seed, "J", self._branch, point))
            batch = next(self._others)
            seed_again(derive(loop.seed, "J", self._branch, point))
            return v, rows_of(loop.values(batch, loop.losses), parameters)

    def _endless(self, purpose: str) -> Iterator[Any]:
        """Yield training batches, in an order that depends on the branch and the purpose."""
        train, epoch = self._loop.train, 0
        while True:
            source: Iterable[Any] = train
            if isinstance(train, Sequence):
                drawn = random.Random(derive(self._loop.seed, purpose, self._branch, epoch))
                source = [train[number] for number in drawn.sample(range(len(train)), len(train))]
            seed_again(derive(self._loop.seed, purpose, self._branch, epoch))
            empty = True
            for batch in source:
                empty = False
                yield batch
            if empty:
                raise UserError(
                    "train can be read only once", "Give a list, a DataLoader, or another repeatable iterable."
                )
            epoch += 1


def _takes_names(losses: Losses) -> bool:
    """Return whether the loss function takes the names of the losses that are wanted as a second argument."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    taken = [each for each in inspect.signature(losses).parameters.values() if each.kind in kinds]
    return len(taken) > 1 and taken[1].default is inspect.Parameter.empty
