"""What modules hold in plain attributes: counters, tensors that are no buffers, queues, caches, generators."""

from __future__ import annotations

import copy
import random
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from meltr.autograd.still import mark_of
from meltr.torch_private import modules_of, parameters_of

MOST = 10_000
"""Longest list, queue or dictionary that counts as state; a longer one is a table, such as a vocabulary."""

_INTERNAL = frozenset(vars(nn.Module()))
_MAPPINGS = (dict, OrderedDict, defaultdict)
_CONTAINERS = (list, deque, tuple, set, frozenset, *_MAPPINGS)
_CONSTANTS = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
_PLAIN_CONSTANTS = frozenset(_CONSTANTS)
"""Most attributes are of exactly these types, so that they are looked for first."""

_Plain = dict[str, Any]
_Parts = tuple[Any, ...]


class Attributes:
    """The plain attributes of modules at one moment, as far as they are state.

    State is what a forward pass may change and a copy can bring back: numbers, texts, tensors that are neither
    parameters nor leaves with a gradient, random number generators, and lists, queues, tuples, sets and dictionaries of
    these. Other objects stay as they are. Modules of torch itself hold their state in buffers and are not looked at.

    Args:
        modules: The modules.

    Attributes:
        tensors: The tensors in them.
        marks: The marks of these tensors, by the id of the tensor.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._found: list[tuple[nn.Module, _Parts, frozenset[str], _Plain]] = []
        known: dict[int, Any] = {}
        for module in modules:
            if not _of_torch(module):
                own = _own(module)
                state = {name: _copy(value, _bare, known) for name, value in own.items() if _is_state(value)}
                self._found.append((module, _parts(module), frozenset(own), state))
        states = (state.values() for _, _, _, state in self._found)
        self.tensors = [each for values in states for each in _beside_constants(values) if isinstance(each, Tensor)]
        self.marks = {id(each): mark_of(each) for each in self.tensors}

    def extend(self, other: Attributes) -> None:
        """Include the attributes of further modules."""
        self._found += other._found
        self.tensors += other.tensors
        self.marks |= other.marks

    def changed(self) -> bool:
        """Tell whether the attributes are no longer these; tensors are compared as objects, with their versions."""
        for module, parts, names, state in self._found:
            own = vars(module)
            if _parts(module) == parts and (
                any(name not in names and _is_state(value) for name, value in _own(module).items())
                or any(name not in own or not self._is_same(value, own[name]) for name, value in state.items())
            ):
                return True
        return False

    def _is_same(self, kept: Any, now: Any) -> bool:
        if isinstance(kept, Tensor):
            return kept is now and self.marks.get(id(kept)) == mark_of(now)
        if isinstance(kept, _Draws):
            return kept.is_at(now)
        if type(kept) not in _CONTAINERS:
            return type(kept) is type(now) and bool(kept == now)
        if type(kept) is not type(now) or len(kept) != len(now):
            return False
        if type(kept) in _MAPPINGS:
            return kept.keys() == now.keys() and all(self._is_same(kept[key], now[key]) for key in kept)
        if isinstance(kept, (set, frozenset)):
            return bool(kept == now)
        return all(map(self._is_same, kept, now))

    def place(self, copied: Callable[[Tensor], Tensor]) -> None:
        """Give the modules copies of these attributes; a module that has got other parts since keeps its own.

        Args:
            copied: Returns what a module gets in place of a tensor.
        """
        known: dict[int, Any] = {}
        for module, parts, names, state in self._found:
            if _parts(module) != parts:
                continue  # built in its first forward pass: its flags belong to its parts
            own = vars(module)
            for name in [name for name, value in _own(module).items() if name not in names and _is_state(value)]:
                del own[name]
            for name, value in state.items():
                if name not in own or _is_state(own[name]):
                    own[name] = _copy(value, copied, known)


class Originals:
    """The plain attributes themselves, to be put back after modules worked on copies.

    Args:
        modules: The modules.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._found = [(module, _parts(module), _own(module)) for module in modules if not _of_torch(module)]
        kept = [value for _, _, own in self._found for value in own.values() if _is_state(value)]
        self._draws = [_Draws(each) for each in _beside_constants(kept) if isinstance(each, _generators())]

    def put_back(self) -> None:
        """Give every module exactly these attributes, unless it has got other parts meanwhile."""
        for module, parts, before in self._found:
            now = vars(module)
            if _parts(module) == parts:
                for name in _own(module).keys() - before.keys():
                    del now[name]
                now.update(before)
        for each in self._draws:
            each.restored()


class _Draws:
    """A random number generator at one moment. It stays the same object, since others may draw from it too."""

    def __init__(self, generator: Any) -> None:
        self._generator = generator
        if isinstance(generator, torch.Generator):
            self._state: Any = generator.get_state()
        elif isinstance(generator, random.Random):
            self._state = generator.getstate()
        else:
            self._state = copy.deepcopy(generator.bit_generator.state)

    def is_at(self, generator: Any) -> bool:
        """Tell whether another one is the same generator, in the same state."""
        return generator is self._generator and _equal(_Draws(generator)._state, self._state)

    def restored(self) -> Any:
        """Bring its state back, and return it."""
        if isinstance(self._generator, torch.Generator):
            self._generator.set_state(self._state)
        elif isinstance(self._generator, random.Random):
            self._generator.setstate(self._state)
        else:
            self._generator.bit_generator.state = copy.deepcopy(self._state)
        return self._generator


def _equal(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, Tensor) else repr(one) == repr(other)


def _of_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.")


def _own(module: nn.Module) -> _Plain:
    held = vars(module)
    return {name: held[name] for name in held.keys() - _INTERNAL}


def _parts(module: nn.Module) -> _Parts:
    """Return what a module consists of: its modules, and the names of its parameters."""
    return (*map(id, modules_of(module).values()), *parameters_of(module))


def _generators() -> tuple[type, ...]:
    numpy = sys.modules.get("numpy")
    return (torch.Generator, random.Random, *(() if numpy is None else (numpy.random.Generator,)))


def _is_state(value: Any) -> bool:
    if type(value) in _PLAIN_CONSTANTS:
        return True
    if isinstance(value, Tensor):
        return not isinstance(value, nn.Parameter) and not (value.requires_grad and value.is_leaf)
    if type(value) in _CONTAINERS:
        return len(value) <= MOST and all(map(_is_state, _inside(value)))
    return issubclass(type(value), (*_CONSTANTS, *_generators()))  # an object may compute what isinstance asks for


def _inside(container: Any) -> Iterable[Any]:
    inside: Iterable[Any] = container.values() if type(container) in _MAPPINGS else container
    return inside


def _beside_constants(values: Iterable[Any]) -> Iterator[Any]:
    """Yield what is in these values, however deep, but for constants."""
    for value in values:
        kind = type(value)
        if kind in _CONTAINERS:
            yield from _beside_constants(_inside(value))
        elif kind not in _PLAIN_CONSTANTS:
            yield value


def _bare(tensor: Tensor) -> Tensor:
    """Return a tensor without its graph, which would otherwise live for longer."""
    return tensor if tensor.grad_fn is None else tensor.detach()


def _copy(value: Any, copied: Callable[[Tensor], Tensor], known: dict[int, Any]) -> Any:
    """Return a copy, the same one for the same container.

    Args:
        value: State, or a copy of it, in which `_Draws` stand for generators.
        copied: Returns what stands in place of a tensor.
        known: Copies by the id of the original; they are added to it.
    """
    if type(value) in _PLAIN_CONSTANTS:
        return value
    if isinstance(value, Tensor):
        return copied(value)
    if isinstance(value, _Draws):
        return value.restored()
    if isinstance(value, _generators()):
        return _Draws(value)
    if type(value) not in _CONTAINERS or id(value) in known:
        return known.get(id(value), value)
    if type(value) in _MAPPINGS:
        made: Any = copy.copy(value)
        made.update({key: _copy(each, copied, known) for key, each in value.items()})
    elif isinstance(value, deque):
        made = deque((_copy(each, copied, known) for each in value), value.maxlen)
    else:
        made = type(value)(_copy(each, copied, known) for each in value)
    known[id(value)] = made
    return made
