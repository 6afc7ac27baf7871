"""Trained weights that the losses themselves change: clamped or normalised in the forward, a moving average."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from meltr.autograd.still import Mark, mark_of
from meltr.errors import LoopError
from meltr.torch_private import norms_of_each, parameters_of

LOOKS = 2
"""Evaluations in which the norms of all weights are compared too: a change through ``.data`` leaves no mark."""


class Held(NamedTuple):
    """A trained weight, where it was found.

    Args:
        module: The module that holds it.
        own: Its name in this module.
        weight: The weight.
        name: Its name in the whole model.
    """

    module: nn.Module
    own: str
    weight: Tensor
    name: str


class Look(NamedTuple):
    """The trained weights before an evaluation.

    Args:
        held: The weights.
        marks: Their marks.
        norms: Their norms, one number each; empty if they are not compared.
    """

    held: Sequence[Held]
    marks: Sequence[Mark]
    norms: Sequence[float]


class Trained:
    """Notices that evaluations of the losses change trained weights, so that one more would change them again.

    Such a step is a constant for the backward pass of the same evaluation. Differences and forward mode do not see it
    so, and an evaluation again starts from weights that were changed already. A change that is the same again, such as
    clamping, does no harm.

    Args:
        whole: False if the weights are sharded; then they are not looked at.

    Attributes:
        moving: The weights that were seen to change.
    """

    def __init__(self, *, whole: bool = True) -> None:
        self._whole, self._looks = whole, LOOKS
        self.moving: list[Held] = []

    def look(self, roots: Sequence[nn.Module]) -> Look:
        """Return the trained weights of modules as they are now."""
        if not self._whole:
            return Look((), (), ())
        held = [
            Held(module, own, weight, f"{prefix}.{own}" if prefix else own)
            for root in roots
            for prefix, module in root.named_modules()
            for own, weight in parameters_of(module).items()
            if weight is not None and weight.requires_grad and not is_lazy(weight)
        ]
        return Look(held, [mark_of(each.weight) for each in held], _norms(held) if self._looks else ())

    def learn(self, before: Look) -> None:
        """Note which weights an evaluation has changed.

        Args:
            before: The weights before it.
        """
        norms = _norms(before.held) if before.norms else ()
        self._looks -= bool(before.norms)
        for place, (held, mark) in enumerate(zip(before.held, before.marks, strict=True)):
            now = parameters_of(held.module).get(held.own)
            same = now is held.weight and mark_of(now) == mark and (not norms or norms[place] == before.norms[place])
            if not same and all(each.module is not held.module or each.own != held.own for each in self.moving):
                self.moving.append(held)

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Check that an evaluation again leaves the weights as they are.

        Raises:
            LoopError: If it changes one.
        """
        before = [(each, _now(each), _now(each).detach().clone()) for each in self.moving]
        yield
        for each, weight, value in before:
            if _now(each) is not weight or not _as_before(weight.detach(), value):
                with torch.no_grad():
                    weight.copy_(value)
                raise self.refused(each)

    @staticmethod
    def refused(held: Held) -> LoopError:
        """Return the error that names a weight which every evaluation would change again."""
        return LoopError(
            f"The losses change the trained weight {held.name} by themselves, and this step has to evaluate them more "
            "than once: every evaluation would change it again.",
            "Change it after optimizer.step(). Steps with one evaluation work: one batch per call, retain_graph=True, "
            "no other batch for the outer step, scheme aid-fp-lite.",
        )


def _as_before(one: Tensor, other: Tensor) -> bool:
    """Tell whether two values are the same up to rounding: normalising what is normalised may change the last bits."""
    return torch.allclose(one, other, rtol=4 * torch.finfo(other.dtype).eps, atol=0)


def _now(held: Held) -> Tensor:
    found: Tensor = parameters_of(held.module)[held.own]
    return found


def _norms(held: Sequence[Held]) -> list[float]:
    dense = [each.weight.detach() for each in held if each.weight.layout == torch.strided]
    found = iter(norms_of_each([torch.view_as_real(each) if each.is_complex() else each for each in dense]))
    return [float(next(found)) if each.weight.layout == torch.strided else 0.0 for each in held]
