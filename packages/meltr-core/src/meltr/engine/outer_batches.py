"""The batches of an outer step: the current batch or a part of it, held-out batches, or a replay buffer."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from meltr.autograd.losses import Compute
from meltr.context import Data, RunContext
from meltr.engine.batches import Cursor, ReplayBuffer, count_examples, to_device
from meltr.engine.hooks import Hooks
from meltr.seeding import derive

FAR = 2**20
"""First epoch of the stream of independent batches; training never reaches it."""

Losses = Callable[[Any, RunContext], Compute]


class OuterBatches:
    """Provides the batches of outer steps, as a function of the seed and the number of steps taken.

    Args:
        hooks: The adapter.
        context: Context of the run.
        data: Data of the run.
        losses: Turns a batch into a loss function.
        independent: Number of independent batches that the scheme needs per outer step.
    """

    def __init__(self, hooks: Hooks, context: RunContext, data: Data, losses: Losses, *, independent: int = 0) -> None:
        self._hooks, self._context, self._data, self._losses = hooks, context, data, losses
        self._count = independent
        self._spec = context.spec.bilevel
        held_out = data.held_out if self._spec.outer_batch == "held_out" else None
        self._held_out = None if held_out is None else Cursor(held_out)
        self._independent = Cursor(data.train, FAR)
        self.buffer = ReplayBuffer(self._spec.replay_size, self._spec.replay_eviction)

    @property
    def replayed(self) -> bool:
        """True if outer steps use batches from the buffer and follow an inner step."""
        return self._spec.outer_batch == "replay"

    def for_step(self, batch: Any, outer_steps: int) -> dict[str, Any]:
        """Return the arguments of `Bilevel.backward` for an outer step with a batch.

        Args:
            batch: The current batch.
            outer_steps: Outer steps taken so far.
        """
        found: dict[str, Any] = {"others": self.others(outer_steps)}
        if self._spec.outer_batch == "cross":
            found["cross"] = True
        if self._held_out is not None:
            held_out = to_device(self._held_out.at(outer_steps), self._context.device)
            found["primary"] = self._losses(held_out, self._primary_only())
        if self._spec.outer_fraction < 1:
            found["outer_part"] = self._losses(self._part(batch), self._context)
        return found

    def others(self, outer_steps: int) -> Callable[[int], Compute]:
        """Return a function from i to the loss function on independent batch i, for one outer step."""

        def losses(number: int) -> Compute:
            batch = to_device(self._independent.at(outer_steps * self._count + number), self._context.device)
            return self._losses(self._part(batch), self._context)

        return losses

    def replay(self, batch: Any, *, step: int, index: int) -> tuple[Compute, Compute] | None:
        """Return the primary and the auxiliary losses on two draws from the buffer, if an outer step follows this step.

        Args:
            batch: The current batch, used if the buffer is empty.
            step: Inner steps taken before this one.
            index: Inner steps of this epoch taken before this one.
        """
        counted = index if self._spec.phase_restarts else step
        if counted % self._spec.every != self._spec.phase % self._spec.every:
            return None
        rng = random.Random(derive(self._context.spec.seed, "replay", step))
        first, second = self.buffer.draw(rng, batch), self.buffer.draw(rng, batch)
        return self._losses(self._part(first), self._primary_only()), self._losses(self._part(second), self._context)

    def remember(self, epoch: int, index: int, batch: Any, *, step: int) -> None:
        """Add a batch to the buffer."""
        rng = random.Random(derive(self._context.spec.seed, "eviction", step))
        if self._spec.outer_batch == "replay":
            self.buffer.append(epoch, index, batch, rng)

    def state_dict(self) -> dict[str, Any]:
        """Return the positions of the batches in the replay buffer."""
        return {"positions": self.buffer.positions()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Fetch the batches of the replay buffer again."""
        self.buffer.refill(state["positions"], self._data.train, self._context.device)

    def _primary_only(self) -> RunContext:
        return self._context.with_losses(self._context.losses[0])

    def _part(self, batch: Any) -> Any:
        if self._spec.outer_fraction == 1:
            return batch
        count = count_examples(batch)
        return self._hooks.slice_batch(batch, 0, max(1, round(count * self._spec.outer_fraction)))
