"""Which tensors the evaluations of the losses leave as they are, so that they need no copies."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from meltr.torch_private import parameters_of, version

MOST_BYTES = 2**30
"""Most memory of the copies of frozen weights of which it is not known yet whether they move."""

Mark = tuple[int, int]


def mark_of(tensor: Tensor) -> Mark:
    """Return what changes if a tensor is changed in place or gets other memory, even with the same values."""
    stored = tensor.layout == torch.strided
    return (-1 if tensor.is_inference() else version(tensor)), tensor.data_ptr() if stored else 0


class Still:
    """Knows which tensors several evaluations have left as they are.

    Args:
        looks: Number of these evaluations.
    """

    def __init__(self, looks: int) -> None:
        self._looks = looks
        self._seen: dict[int, tuple[ref[Tensor], int]] = {}

    def __contains__(self, tensor: Tensor) -> bool:
        return self.looks(tensor) >= self._looks

    def looks(self, tensor: Tensor) -> int:
        """Return how many evaluations have left a tensor as it is; -1 if one has changed it."""
        found, looks = self._seen.get(id(tensor), (None, 0))
        return looks if found is not None and found() is tensor else 0

    def learn(self, tensor: Tensor, mark: Mark, before: Tensor | None, *, seen: Tensor) -> None:
        """Note whether an evaluation has changed a tensor.

        Args:
            tensor: The tensor.
            mark: The mark of `seen` before the evaluation.
            before: Its value before the evaluation; None: not known.
            seen: What the evaluation had in its place.
        """
        looks = self.looks(tensor)
        changed = looks < 0 or mark_of(seen) != mark or (before is not None and not _equal(seen, before))
        self._seen[id(tensor)] = ref(tensor), -1 if changed else looks + 1


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.layout != torch.strided or (one.shape == other.shape and torch.equal(one, other))


class Place(NamedTuple):
    """Where a module holds a weight.

    Args:
        module: The module.
        name: The name of the weight in it.
        weight: The weight.
        mark: Its mark at that time.
    """

    module: nn.Module
    name: str
    weight: Tensor
    mark: Mark

    def put(self, weight: Tensor) -> None:
        """Let the module hold another weight."""
        parameters_of(self.module)[self.name] = weight


class Known:
    """What the evaluations of a training loop have shown: which tensors beside the trained weights they move.

    A momentum encoder is updated in the forward pass of many models (MoCo, ALBEF): its frozen weights are then state,
    as buffers are. A backbone that is frozen is not, and may be large. At first the encoder equals what it follows, so
    that its values tell nothing before a second evaluation.

    Args:
        whole: False if the weights are sharded; then frozen ones are not looked at.

    Attributes:
        attributes: Tensors in plain attributes that are still.
    """

    def __init__(self, *, whole: bool = True) -> None:
        self._whole, self._weights = whole, Still(2)
        self.attributes = Still(1)
        self._originals: dict[int, tuple[ref[Tensor], ref[Tensor]]] = {}

    def copied(self, copy: Tensor, original: Tensor) -> None:
        """Note that an evaluation has a copy in place of a tensor: what it shows of the one holds for the other."""
        self._originals[id(copy)] = ref(copy), ref(original)

    def forget_copies(self) -> None:
        """Forget the copies that are gone."""
        self._originals = {key: pair for key, pair in self._originals.items() if pair[0]() is not None}

    def _original(self, tensor: Tensor) -> Tensor:
        copy, original = self._originals.get(id(tensor), (None, None))
        found = None if copy is None or original is None or copy() is not tensor else original()
        return tensor if found is None else found

    def frozen(self, modules: Iterable[nn.Module]) -> list[Place]:
        """Return the places of all frozen weights."""
        return [
            Place(module, name, weight, mark_of(weight))
            for module in (modules if self._whole else ())
            for name, weight in parameters_of(module).items()
            if weight is not None and not weight.requires_grad and not is_lazy(weight)
        ]

    def to_copy(self, places: Iterable[Place]) -> list[Place]:
        """Return the places of frozen weights that move, and of those that may, if they are not too large."""
        found = [each for each in places if each.weight not in self._weights]
        unknown = {id(each.weight): each.weight.nbytes for each in found if self._weights.looks(each.weight) >= 0}
        few = sum(unknown.values()) <= MOST_BYTES
        return [each for each in found if few or id(each.weight) not in unknown]

    def learn(self, place: Place, before: Tensor | None) -> None:
        """Note whether an evaluation has moved a frozen weight.

        Args:
            place: Its place before the evaluation.
            before: Its value before the evaluation; None: not known.
        """
        self._weights.learn(self._original(place.weight), place.mark, before, seen=place.weight)

    def learn_attribute(self, tensor: Tensor, mark: Mark, before: Tensor | None) -> None:
        """Note whether an evaluation has changed a tensor in a plain attribute.

        Args:
            tensor: The tensor.
            mark: Its mark before the evaluation.
            before: Its value before the evaluation; None: not known.
        """
        self.attributes.learn(self._original(tensor), mark, before, seen=tensor)
