"""The kept rows of the Jacobian: the gradient of every loss with respect to every leaf."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from meltr.autograd.vectors import Combination, Direction, add, scale


class Rows:
    """This process' share of the rows of J: row t is the gradient of task t.

    Args:
        leaves: What the losses were differentiated with respect to: the parameters w first, then other leaves they
            reach.
        count: How many of `leaves` are parameters w.
        rows: One row per loss, one entry per leaf; None where a loss does not depend on it.
        reached: The ids of the leaves that the graph reaches.
    """

    def __init__(
        self, leaves: Sequence[Tensor], count: int, rows: list[list[Tensor | None]], reached: frozenset[int]
    ) -> None:
        self.leaves, self.count, self.reached = list(leaves), count, reached
        self._rows = rows

    def row(self, task: int) -> Direction:
        """Return the gradient of a task with respect to the parameters w."""
        return self._rows[task][: self.count]

    def all(self) -> list[list[Tensor | None]]:
        """Return the rows with respect to the parameters w."""
        return [row[: self.count] for row in self._rows]

    def combination(self, weights: Tensor) -> Combination:
        """Return sum_t weights[t] * row t with respect to the parameters w, for weights of shape (T+1,)."""
        return Combination(weights, self._rows, self.count)

    def made(self, direction: Direction) -> bool:
        """Tell whether a direction is a combination of these rows."""
        return isinstance(direction, Combination) and direction.rows is self._rows

    def spend(self, weights: Tensor) -> Iterator[Tensor | None]:
        """Yield sum_t weights[t] * row t for every leaf; parts of the rows are freed as they are used."""
        return Combination(weights, self._rows, len(self.leaves)).spend()

    def rest(self, weights: Tensor) -> list[Tensor | None]:
        """Return sum_t weights[t] * row t for the leaves that are not among the parameters w."""
        return Combination(weights, self._rows, len(self.leaves))[self.count :]

    def plus(self, other: Rows) -> Rows:
        """Return the sum with the rows of another micro-batch, which may reach other leaves."""
        places = {id(leaf): place for place, leaf in enumerate(self.leaves)}
        new = [leaf for leaf in other.leaves if id(leaf) not in places]
        places.update({id(leaf): len(self.leaves) + number for number, leaf in enumerate(new)})
        rows = []
        for own, theirs in zip(self._rows, other._rows, strict=True):
            spread: list[Tensor | None] = [None] * len(places)
            for leaf, part in zip(other.leaves, theirs, strict=True):
                spread[places[id(leaf)]] = part
            rows.append(add([*own, *[None] * len(new)], spread))
        return Rows([*self.leaves, *new], self.count, rows, self.reached | other.reached)

    def scaled(self, factor: float) -> Rows:
        """Return factor * rows."""
        return Rows(self.leaves, self.count, [scale(row, factor) for row in self._rows], self.reached)

    def has_sparse(self) -> bool:
        """Tell whether a gradient is sparse, as those of ``nn.Embedding(sparse=True)`` are."""
        return any(part is not None and part.is_sparse for row in self._rows for part in row)
