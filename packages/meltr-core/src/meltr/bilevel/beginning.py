"""What happens once, at the first call of a training loop."""

from __future__ import annotations

from torch import Tensor, nn

from meltr.combiners.base import Combiner
from meltr.hypergradients.setup import ModelSetup


class Beginning:
    """Gives all processes the same combiner, and shows it the first losses of a run.

    Args:
        setup: The processes.
        combiner: The combiner.
    """

    def __init__(self, setup: ModelSetup, combiner: nn.Module) -> None:
        self._setup, self._combiner = setup, combiner
        self._shared, self._prepared = False, False

    def share(self) -> None:
        """At the first call, give all processes the combiner of rank 0."""
        if not self._shared:
            state = (*self._combiner.parameters(), *self._combiner.buffers())
            self._setup.sharing.broadcast(each.detach() for each in state)
        self._shared = True

    def prepare(self, losses: Tensor, step: int) -> None:
        """Show the combiner the first losses of the run, once.

        Args:
            losses: l, shape (T+1,).
            step: Inner steps taken; after the first one nothing is shown.
        """
        if step == 0 and not self._prepared and isinstance(self._combiner, Combiner):
            self._combiner.prepare(losses)
        self._prepared = True
