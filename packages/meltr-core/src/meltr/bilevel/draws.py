"""The combiner's random numbers (its dropout)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from meltr.hypergradients.setup import ModelSetup
from meltr.seeding import derive


class CombinerDraws:
    """Makes the combiners of all processes draw the same random numbers, so that all compute the same function.

    Args:
        setup: Generators and processes.
        seed: Seed of the run.
    """

    def __init__(self, setup: ModelSetup, seed: int) -> None:
        self._setup, self._seed = setup, seed

    @contextmanager
    def of_step(self, step: int) -> Iterator[None]:
        """Within this context all of several processes draw the same numbers; afterwards their generators are restored.

        A single process draws from its generators directly.

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
