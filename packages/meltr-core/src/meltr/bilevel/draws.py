"""The random numbers that a combiner draws (its dropout)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from meltr.hypergradients.setup import ModelSetup
from meltr.seeding import derive


class CombinerDraws:
    """Lets the combiners of all processes draw the same random numbers, so that they stay the same function.

    Args:
        setup: Generators and processes.
        seed: Of the run.
    """

    def __init__(self, setup: ModelSetup, seed: int) -> None:
        self._setup, self._seed = setup, seed

    @contextmanager
    def of_step(self, step: int) -> Iterator[None]:
        """Within this context several processes draw alike; afterwards no generator of theirs has moved.

        One process draws from its generators as they are.

        Args:
            step: Inner steps taken so far.
        """
        if self._setup.sharing.one_process:
            yield
            return
        before = self._setup.random_state()
        torch.manual_seed(derive(self._seed, "combiner", step))
        try:
            yield
        finally:
            before.restore()
