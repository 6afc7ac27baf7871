"""Evaluates the losses of a training loop: those of the current batch, and those that only an outer step uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from meltr.autograd.losses import Compute
from meltr.bilevel.checks import Fresh, check_functions
from meltr.bilevel.given import GivenLosses
from meltr.bilevel.weights import OuterWeights
from meltr.hypergradients.halves import Halves
from meltr.hypergradients.loss_function import LossFunction
from meltr.hypergradients.loss_values import BatchValues, LossValues
from meltr.hypergradients.micro_batches import MicroBatches
from meltr.hypergradients.setup import ModelSetup


@dataclass(frozen=True)
class Evaluations:
    """How a loop's losses are evaluated.

    Args:
        setup: Model, precision, generators and processes.
        given: Matches losses with the combiner.
        fresh: Detects losses that were computed before.
        seen: The parameters that outer steps consider.
        retain_graph: Keep the graph of an outer step's forward pass for the inner gradient.
        averaged_by_backward: Whether the inner gradient is averaged over processes by its backward pass.
        math_attention: Whether an outer step differentiates twice; the fused attention kernels have no second
            derivative.
    """

    setup: ModelSetup
    given: GivenLosses
    fresh: Fresh
    seen: OuterWeights
    retain_graph: bool
    averaged_by_backward: bool
    math_attention: Callable[[], bool]

    def first(
        self, compute: Compute | Sequence[Compute], *, outer: bool, cross: bool = False, again: bool = False
    ) -> LossValues:
        """Evaluate the losses of the current batch for the first time.

        Args:
            compute: The loop's function, or one per micro-batch.
            outer: True if an outer step uses them.
            cross: True if the outer step wants them in two halves.
            again: True if they are evaluated again for another reason.
        """
        several = check_functions(compute)
        once = len(several) == 1 and not (outer and not self.retain_graph and self.seen.all)
        again = again or outer or not once
        functions = [self._function(each, outer=outer, replayable=again) for each in several]
        if cross and outer:
            return Halves.evaluated(functions)
        if once:
            return functions[0].run(graph=True, averaging="backward" if self.averaged_by_backward else None)
        return MicroBatches.first(functions)

    def descended(self, several: Sequence[Compute], weights: Tensor) -> MicroBatches:
        """Evaluate each micro-batch once, and add the gradient of its losses times `weights`, (T+1,), to ``.grad``."""
        return MicroBatches.descended(
            [self._function(each, outer=False, replayable=False) for each in check_functions(several)], weights
        )

    def aside(self, compute: Compute, *, primary: bool = False) -> BatchValues:
        """Evaluate a batch that only the outer step uses, all losses or the `primary` one."""
        return self._function(compute, outer=True, primary=primary).run(graph=True, keep_buffers=True)

    def independent(self, others: Callable[[int], Compute] | None) -> Callable[[int], LossValues] | None:
        """Return a function from i to the losses on independent batch i; None if there are none."""
        return None if others is None else lambda number: self.aside(others(number))

    def _function(
        self, compute: Compute, *, outer: bool, replayable: bool = True, primary: bool = False
    ) -> LossFunction:
        compute = self.given.primary(compute) if primary else self.given.all(compute)
        return LossFunction(
            self.fresh.watched(compute, whole=outer),
            self.setup,
            reduced=self.seen.reduced if outer else None,
            math_attention=outer and self.math_attention(),
            replayable=replayable,
        )
