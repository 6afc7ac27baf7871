"""One combiner per seed, seen by `meltr.Bilevel` as one: what S training runs do, in one.

The losses of all seeds form one vector, seed by seed. As no two seeds share a parameter, the gradient of the sum of
the combined losses consists of the gradients of every run, g = J q holds every run's g, and Adam steps number by
number. So every run trains as it would alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from meltr.combiners.base import Combiner, GradientCombiner, SelfTrained, Step
from meltr.errors import UserError


def side_by_side(copies: Sequence[Combiner]) -> Combiner:
    """Return one combiner that applies each of `copies` to the losses of its seed.

    Args:
        copies: Combiners of one class for the same losses, one per seed.

    Raises:
        UserError: If they need the gradient of every task: such runs cannot share a backward pass.
    """
    if isinstance(copies[0], GradientCombiner):
        raise UserError(f"{type(copies[0]).__name__} needs a run per seed.", "Train the seeds one after another.")
    if isinstance(copies[0], SelfTrained):
        return _SelfTrainedCopies([copy for copy in copies if isinstance(copy, SelfTrained)])
    return Copies(copies)


def names_of(copies: Sequence[Combiner]) -> list[str]:
    """Return the names of all losses, seed by seed."""
    return [f"{number}/{name}" for number, copy in enumerate(copies) for name in copy.names]


class Copies(Combiner):
    """Combiners without a rule of their own, evaluated by one vectorised call.

    Args:
        copies: One per seed.
    """

    def __init__(self, copies: Sequence[Combiner]) -> None:
        super().__init__(names_of(copies))
        self.learned = copies[0].learned
        self._template, self._count = (copies[0],), len(copies)  # in a tuple, so that its parameters are not phi
        parameters, buffers = stack_module_state([*copies])
        self._own = list(parameters)
        self.stacked = nn.ParameterList([nn.Parameter(each.detach()) for each in parameters.values()])
        self._buffers_of_copies = buffers

    def forward(self, losses: Tensor) -> Tensor:
        """Map the losses of all seeds, shape (S (T+1),), to the sum of the combined losses, shape ()."""
        return self.each(losses).sum()

    def each(self, losses: Tensor) -> Tensor:
        """Map the losses of all seeds, shape (S (T+1),), to the combined loss of every seed, shape (S,)."""
        (template,) = self._template
        state = dict(zip(self._own, self.stacked, strict=True))

        def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], own: Tensor) -> Tensor:
            found: Tensor = functional_call(template, (parameters, buffers), (own,))
            return found

        combined: Tensor = vmap(one)(state, self._buffers_of_copies, losses.view(self._count, -1))
        return combined

    def slopes(self, losses: Tensor, gamma: float) -> Tensor:
        """Return d(gamma |m(l) - sum(l)|)/dl (eq. 6) of every seed, shape (S, T+1).

        `Bilevel` would take the distance of the sums over all seeds, which is not the sum of their distances.

        Args:
            losses: Of all seeds, shape (S, T+1).
            gamma: Weight of the regulariser.
        """
        with torch.enable_grad():
            leaf = losses.detach().flatten().requires_grad_()
            combined = self.each(leaf)
            (weights,) = torch.autograd.grad(combined.sum(), leaf)
        above = torch.sign(combined.detach() - losses.detach().sum(1))
        return gamma * above[:, None] * (weights.view_as(losses) - 1)


class _SelfTrainedCopies(SelfTrained):
    """Combiners with a rule of their own.

    Args:
        copies: One per seed.
    """

    def __init__(self, copies: Sequence[SelfTrained]) -> None:
        super().__init__(names_of(copies))
        self.copies = nn.ModuleList(copies)
        self.sees_moved_weights = copies[0].sees_moved_weights

    @property
    def _all(self) -> list[SelfTrained]:
        return [copy for copy in self.copies if isinstance(copy, SelfTrained)]

    def _parts(self, values: Tensor) -> Sequence[Tensor]:
        return list(values.view(len(self.copies), -1))

    def forward(self, losses: Tensor) -> Tensor:
        """Map the losses of all seeds, shape (S (T+1),), to the sum of the combined losses, shape ()."""
        return torch.stack([copy(own) for copy, own in zip(self._all, self._parts(losses), strict=True)]).sum()

    def prepare(self, losses: Tensor) -> None:
        """Let every copy see the first losses of its seed."""
        for copy, own in zip(self._all, self._parts(losses), strict=True):
            copy.prepare(own)

    def own_gradients(self, step: Step) -> list[Tensor | None]:
        """Return the gradients of all copies, in the order of their parameters."""
        shared = _SharedStep(step)
        count, found = len(self.copies), list[Tensor | None]()
        for number, copy in enumerate(self._all):
            found += copy.own_gradients(_StepOfCopy(shared, number, count))
        return found

    def after_update(self) -> None:
        """Let every copy finish its step."""
        for copy in self._all:
            copy.after_update()

    def end_epoch(self) -> None:
        """Let every copy finish its epoch."""
        for copy in self._all:
            copy.end_epoch()


class _SharedStep:
    """A step of all seeds: what one copy asks for serves the others.

    Args:
        step: The step as `Bilevel` shows it.
    """

    def __init__(self, step: Step) -> None:
        self._step = step

    @cached_property
    def losses(self) -> Tensor:
        return self._step.losses

    @cached_property
    def norms(self) -> Tensor:
        return self._step.gradient_norms()

    @cached_property
    def again(self) -> Tensor:
        return self._step.losses_again()


class _StepOfCopy:
    """The step of one seed (`meltr.combiners.base.Step`).

    Args:
        shared: The step of all.
        number: Of the seed.
        count: How many there are.
    """

    def __init__(self, shared: _SharedStep, number: int, count: int) -> None:
        self._shared, self._number, self._count = shared, number, count

    def _own(self, values: Tensor) -> Tensor:
        return values.view(self._count, -1)[self._number]

    @property
    def losses(self) -> Tensor:
        """The losses before the step, shape (T+1,)."""
        return self._own(self._shared.losses)

    def gradient_norms(self) -> Tensor:
        """Return each task's gradient norm, shape (T+1,)."""
        return self._own(self._shared.norms)

    def losses_again(self) -> Tensor:
        """Return the losses after the step, shape (T+1,)."""
        return self._own(self._shared.again)
