"""Vectors in parameter space: one tensor per parameter, None where it is zero."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import overload

import torch
from torch import Tensor

from meltr.shards import local
from meltr.torch_private import (
    add_each,
    copy_each,
    norms_of_each,
    preserved_versions,
    products_each,
    scale_each,
    subtract_each,
    sums_of_each,
)

Direction = Sequence[Tensor | None]
"""A vector in parameter space: one tensor per parameter, None where it is zero."""


def add(one: Direction, other: Direction, *, alpha: float = 1.0) -> list[Tensor | None]:
    """Return one + alpha * other."""
    return [a if b is None else b * alpha if a is None else _add(a, b, alpha) for a, b in zip(one, other, strict=True)]


def _add(a: Tensor, b: Tensor, alpha: float) -> Tensor:
    if a.is_sparse and not b.is_sparse:  # torch adds a sparse tensor to a dense one only
        return torch.add(b * alpha, a)
    return torch.add(a, b, alpha=alpha)


def scale(direction: Direction, factor: float | Tensor) -> list[Tensor | None]:
    """Return factor * direction."""
    return [None if part is None else part * factor for part in direction]


def scaled_all(direction: Direction, factor: Tensor) -> list[Tensor | None]:
    """Return factor * direction for a factor on its device, shape (), by few kernels."""
    places = [place for place, part in enumerate(direction) if part is not None and not part.is_sparse]
    found = scale([None if place in set(places) else part for place, part in enumerate(direction)], factor)
    parts = [part for place in places if (part := direction[place]) is not None]
    for place, part in zip(places, products_each(parts, factor) if parts else [], strict=True):
        found[place] = part
    return found


def fast_norm(direction: Direction) -> Tensor:
    """Return the Euclidean norm, float64, shape (), by few kernels; each part's norm is computed in its own type."""
    parts = [_dense(part) for part in direction if part is not None]
    norms = norms_of_each([part for part in parts if part.numel()])
    return torch.zeros((), dtype=torch.float64) if not norms else torch.stack([n.double() for n in norms]).norm()


class Combination(Sequence[Tensor | None]):
    """The direction sum_t weights[t] * rows[t], each part of which is computed on access.

    Args:
        weights: Shape (n,).
        rows: n directions.
        count: Number of entries of each row that belong to the direction; None: all.
    """

    def __init__(self, weights: Tensor, rows: Sequence[list[Tensor | None]], count: int | None = None) -> None:
        self.weights, self.rows = weights, rows
        self._count = len(rows[0]) if count is None else count

    def __len__(self) -> int:
        """Parameters."""
        return self._count

    @overload
    def __getitem__(self, place: int) -> Tensor | None: ...
    @overload
    def __getitem__(self, place: slice) -> list[Tensor | None]: ...
    def __getitem__(self, place: int | slice) -> Tensor | list[Tensor | None] | None:
        """Return the part for one parameter, dense; None where all rows have None."""
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(f"place {place} of {len(self)} parameters")
        return dense(self._part(place % len(self)))

    def _part(self, place: int) -> Tensor | None:
        """Return the part for one parameter; sparse if all rows are."""
        total: Tensor | None = None
        for weight, row in zip(self.weights, self.rows, strict=True):
            part = row[place]
            if part is None:
                continue
            if total is None:
                total = part * weight
            elif total.is_sparse or part.is_sparse:
                total = _add(total, part * weight, 1.0)
            else:
                total = total.addcmul_(part, weight.to(part.dtype))
        return total

    def products(self) -> Tensor:
        """Return the inner product of every row with the combination, shape (n,), float64.

        It uses the Gram matrix of the rows, so the combination itself is not computed.
        """
        size, rows = len(self.rows), [row[: len(self)] for row in self.rows]
        gram = [[dot(rows[i], rows[j]) for j in range(i + 1)] for i in range(size)]
        return torch.stack([torch.stack([gram[max(i, j)][min(i, j)] for j in range(size)]) for i in range(size)]) @ (
            self.weights.double().to(gram[0][0].device)
        )

    def spend(self) -> Iterator[Tensor | None]:
        """Yield the parts, sparse where all rows are; the rows' parts are freed as they are used."""
        places = [place for place in range(len(self)) if self._joins(place)]
        firsts = [part for place in places if (part := self.rows[0][place]) is not None]
        ready: dict[int, Tensor] = {}
        groups = [places[part] for part in _groups(firsts)]
        for place in range(len(self)):
            if groups and place == groups[0][0]:
                ready.update(self._together(groups.pop(0)))
            part = ready.pop(place) if place in ready else self._part(place)
            for row in self.rows:
                row[place] = None
            yield part

    def _joins(self, place: int) -> bool:
        """Tell whether a part is computed with others by few kernels: on a GPU, dense in all rows, and of one type."""
        parts = [row[place] for row in self.rows]
        kind = self.weights.device, self.weights.dtype
        return kind[0].type != "cpu" and all(
            part is not None and not part.is_sparse and (part.device, part.dtype) == kind for part in parts
        )

    def _together(self, places: Sequence[int]) -> dict[int, Tensor]:
        """Return the parts for several parameters."""
        columns = [[part for place in places if (part := row[place]) is not None] for row in self.rows]
        totals = products_each(columns[0], self.weights[0])
        for weight, column in zip(self.weights[1:], columns[1:], strict=True):
            add_each(totals, products_each(column, weight))
        return dict(zip(places, totals, strict=True))


def dense(part: Tensor | None) -> Tensor | None:
    """Return a part of a direction as a dense tensor; gradients of ``nn.Embedding(sparse=True)`` are sparse."""
    return None if part is None else _dense(part)


def dot(one: Direction, other: Direction) -> Tensor:
    """Return the inner product of two directions, of what this process holds of them, in float64, shape ().

    A complex number counts as two real ones.
    """
    pairs = [
        (_real(local(a)), _real(local(b))) for a, b in zip(one, other, strict=True) if a is not None and b is not None
    ]
    if not pairs:
        return torch.zeros((), dtype=torch.float64)
    if pairs[0][0].device.type != "cpu":
        pairs = list(_joined(pairs))
    products = [_dot(a.flatten(), b.flatten()) for a, b in pairs]
    return torch.stack([product.to(products[0].device) for product in products]).sum()


def _joined(pairs: Sequence[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the pairs, small ones of one kind joined into one, so that few kernels are launched."""
    kinds: dict[tuple[torch.device, torch.dtype, torch.dtype], list[tuple[Tensor, Tensor]]] = {}
    for a, b in pairs:
        kinds.setdefault((a.device, a.dtype, b.dtype), []).append((a.flatten(), b.flatten()))
    for kind in kinds.values():
        for part in _groups([a for a, _ in kind]):
            group = kind[part]
            yield group[0] if len(group) == 1 else (torch.cat([a for a, _ in group]), torch.cat([b for _, b in group]))


def _dense(part: Tensor) -> Tensor:
    return part.to_dense() if part.is_sparse else part


def _real(part: Tensor) -> Tensor:
    """Return a part as real numbers: torch's gradient of a complex one holds the slopes of both its real numbers."""
    part = _dense(part)
    return torch.view_as_real(part.resolve_conj()) if part.is_complex() else part


def products(rows: Iterable[Direction], direction: Direction) -> Tensor:
    """Return the inner product of each row with a direction, float64, shape (n,); only one row is alive at a time."""
    found = []
    for row in rows:
        found.append(dot(row, direction))
        del row  # before the next one is computed
    return torch.stack(found)


_CHUNK = 2**15
"""Largest number of products that may be summed in float32 without losing a digit."""


def _dot(a: Tensor, b: Tensor) -> Tensor:
    if a.device.type != "cpu" or a.dtype != b.dtype or a.dtype not in (torch.float32, torch.float64):
        return torch.sum(a * b, dtype=torch.float64)
    # On the CPU, a sum in another data type is much slower than the products themselves.
    chunks = zip(a.split(_CHUNK), b.split(_CHUNK), strict=True)
    return torch.stack([torch.dot(one, other) for one, other in chunks]).sum(dtype=torch.float64)


@contextmanager
def displaced(
    parameters: Sequence[Tensor],
    direction: Direction,
    moved: Callable[[], None] = lambda: None,
    *,
    overwrite: bool = False,
) -> Iterator[Callable[[float], None]]:
    """Displace the weights along a direction, in place; afterwards they are restored bitwise, even after an error.

    Yields a function that sets the weights to w + e * direction, for e other than 0. Autograd's version counters do not
    change, so that a graph built before can still be differentiated.

    The weights and the direction swap memory: while the weights are displaced, the direction's memory holds w, and
    w + e' * direction is computed by rescaling the displacement from w. For several e, use the largest first: the
    relative rounding error of w + e * direction is then smallest.

    Extra memory: a copy of the direction; none with `overwrite`.

    Args:
        parameters: The weights w.
        direction: One entry per parameter.
        moved: Called after every change of the weights (to discard gathered copies of sharded weights).
        overwrite: The contents of `direction` may be overwritten; False: work on a copy.
    """
    pairs = [(local(p).detach(), local(q)) for p, q in zip(parameters, direction, strict=True) if q is not None]
    weights = [p for p, _ in pairs]
    other = _writable(pairs) if overwrite else [torch.empty_like(p).copy_(q) for p, q in pairs]
    at = 0.0

    @torch.no_grad()
    def move(e: float) -> None:
        nonlocal at
        if e == 0:
            raise ValueError("a displacement of 0 would lose the direction")
        if at == 0:
            at = e
            for part in _groups(weights):
                own, their = weights[part], other[part]
                away = sums_of_each(own, their, e)
                copy_each(their, own)
                copy_each(own, away)
        elif weights:
            subtract_each(weights, other)
            scale_each(weights, e / at)
            add_each(weights, other)
            at = e
        torch.clear_autocast_cache()  # an autocast context around the training step keeps copies of the weights
        moved()

    with preserved_versions([*weights, *(p for p in parameters if p.numel())]):
        try:
            yield move
        finally:
            if weights and at != 0:
                with torch.no_grad():
                    copy_each(weights, other)
            torch.clear_autocast_cache()
            moved()


_GROUP = 2**22
"""Numbers that are moved by one kernel; their copies are the extra memory of a displacement."""


def _groups(tensors: Sequence[Tensor]) -> Iterator[slice]:
    """Yield slices of adjacent tensors with up to `_GROUP` numbers, or one larger tensor each."""
    start = held = 0
    for place, tensor in enumerate(tensors):
        if place > start and held + tensor.numel() > _GROUP:
            yield slice(start, place)
            start, held = place, 0
        held += tensor.numel()
    if start < len(tensors):
        yield slice(start, len(tensors))


def _writable(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Return each q as a tensor like its p; copied only if its layout differs or its memory is shared (expanded)."""
    owners: set[int] = set()
    own = []
    for p, q in pairs:
        alone = q.dtype == p.dtype and q.stride() == p.stride() and q.untyped_storage().data_ptr() not in owners
        owners.add(q.untyped_storage().data_ptr())
        own.append(q if alone else torch.empty_like(p).copy_(q))
    return own
