"""The losses that a training loop gives: matched with the combiner by their names, and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from meltr.autograd.losses import Compute, Losses
from meltr.combiners.base import Combiner, as_names
from meltr.errors import LoopError


class GivenLosses:
    """Turns the loss functions of a training loop into functions that return the losses in the combiner's order.

    A mapping is matched by the combiner's names. A combiner that was made with a number of losses has no names of its
    own; the first mapping with all losses then gives them. A sequence or a vector is in the combiner's order.

    Args:
        combiner: m.
    """

    def __init__(self, combiner: nn.Module) -> None:
        own = combiner.names if isinstance(combiner, Combiner) else None
        self._count = None if own is None else len(own)
        self.names: tuple[str, ...] | None = None if own is None or own == as_names(len(own)) else own
        """The names of the losses, primary first; None while there are none."""

    def names_of(self, count: int) -> tuple[str, ...]:
        """Return the names of `count` losses; without own names ``("primary", "auxiliary_1", ...)``."""
        return as_names(count) if self.names is None else self.names

    def continue_with(self, names: Sequence[str] | None) -> None:
        """Take the names of a saved state.

        Raises:
            LoopError: If these losses have other names.
        """
        if names is None:
            return
        if self.names is not None and self.names != tuple(names):
            raise LoopError(
                f"The saved state belongs to the losses {list(names)}, but the combiner has {list(self.names)}.",
                "Make the combiner with the names of the saved state, in that order.",
            )
        self.names = tuple(names)

    def all(self, compute: Compute) -> Compute:
        """Return a function that returns all losses, primary first.

        Args:
            compute: The loop's function.
        """
        return lambda: self._ordered(compute())

    def primary(self, compute: Compute) -> Compute:
        """Return a function whose first loss is the primary one; others may be missing.

        Args:
            compute: The loop's function.
        """
        return lambda: self._primary_first(compute())

    def _ordered(self, losses: Losses) -> Losses:
        if not isinstance(losses, Mapping) or not losses:
            return losses
        names = tuple(losses)
        expected = self._expected(names)
        if len(names) != len(expected) or set(names) != set(expected):
            raise self._mismatch(names, expected, "Return each of the combiner's losses under its name, and no other.")
        self.names = expected
        return _tensors(losses, expected)

    def _expected(self, found: Sequence[str]) -> tuple[str, ...]:
        """Return the names that a mapping must have, in the combiner's order."""
        if self.names is not None:
            return self.names
        default = found if self._count is None else as_names(self._count)
        named_by_the_loop = len(found) == len(default) and set(found) != set(default)
        return tuple(found if named_by_the_loop else default)

    def _primary_first(self, losses: Losses) -> Losses:
        if not isinstance(losses, Mapping) or self.names is None:
            return losses
        if self.names[0] not in losses:
            hint = f"The function given as primary must return the primary loss, {self.names[0]!r}."
            raise self._mismatch(tuple(losses), self.names, hint)
        return _tensors(losses, self.names[:1])

    def _mismatch(self, found: Sequence[str], expected: Sequence[str], hint: str) -> LoopError:
        return LoopError(
            f"The loss function returned the losses {list(found)}, but the combiner has {list(expected)}.", hint
        )


def _tensors(losses: Mapping[str, Tensor], names: Sequence[str]) -> list[Tensor]:
    """Return the losses of these names.

    Raises:
        LoopError: If one is not a tensor with one element.
    """
    for name in names:
        loss = losses[name]
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            found = f"has shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"is a {type(loss).__name__}"
            raise LoopError(
                f"Loss {name!r} {found}, expected a 0-dim tensor.", f"Reduce it, for example {name} = {name}.mean()."
            )
    return [losses[name] for name in names]
