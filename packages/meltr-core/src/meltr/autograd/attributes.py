"""What modules hold in plain attributes: counters, tensors that are no buffers, queues, caches, generators."""

from __future__ import annotations

import copy
import dataclasses
import random
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from meltr.autograd.still import mark_of
from meltr.torch_private import has_hooks_before, modules_of, parameters_of

MOST = 10_000
"""Longest list, queue or dictionary that counts as state; a longer one is a table, such as a vocabulary."""

MOST_BYTES = 2**20
"""Size of the largest numpy array that counts as state; a larger one is a table too."""

_INTERNAL = frozenset(vars(nn.Module()))
_MAPPINGS = (dict, OrderedDict, defaultdict, Counter)
_CONTAINERS = (list, deque, tuple, set, frozenset, *_MAPPINGS)
_CONSTANTS = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)
_PLAIN_CONSTANTS = frozenset(_CONSTANTS)
"""Most attributes are of exactly these types, so that they are looked for first."""

_LIBRARIES = frozenset({"torch", "meltr", "numpy"})
"""Packages whose objects are left as they are; their modules may hold objects of other packages."""

_Plain = dict[str, Any]
_Homes = frozenset[str]
_Parts = tuple[Any, ...]


class Attributes:
    """The plain attributes of modules at one moment, as far as they are state.

    State is what a forward pass may change and a copy can bring back: numbers, texts, tensors that are neither
    parameters nor leaves with a gradient, numpy arrays, random number generators, lists, queues, tuples, sets and
    dictionaries of these, and objects with such attributes: dataclasses, simple namespaces, and objects of a package
    that a module of the model comes from. Other objects stay as they are. Modules of torch itself hold their state in
    buffers and are not looked at, unless hooks compute a weight that they hold.

    Args:
        modules: The modules.

    Attributes:
        tensors: The tensors in them.
        marks: The marks of these tensors, by the id of the tensor.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._found: list[tuple[nn.Module, _Parts, frozenset[str], _Plain]] = []
        known: dict[int, Any] = {}
        looked_at = [module for module in modules if not _of_torch(module)]
        self._homes = _homes(looked_at)
        for module in looked_at:
            own = _own(module)
            state = _state_of(own, self._homes, known)
            self._found.append((module, _parts(module), frozenset(own), state))
        states = (state.values() for _, _, _, state in self._found)
        self.tensors = [each for values in states for each in _beside_constants(values) if isinstance(each, Tensor)]
        self.marks = {id(each): mark_of(each) for each in self.tensors}

    def extend(self, other: Attributes) -> None:
        """Include the attributes of further modules."""
        self._found += other._found
        self._homes |= other._homes
        self.tensors += other.tensors
        self.marks |= other.marks

    def changed(self) -> bool:
        """Tell whether the attributes are no longer these; tensors are compared as objects, with their versions."""
        compared: set[int] = set()
        for module, parts, names, state in self._found:
            if _parts(module) == parts and not self._are_same(names, state, _own(module), compared):
                return True
        return False

    def _are_same(self, names: frozenset[str], state: _Plain, now: _Plain, compared: set[int]) -> bool:
        return not any(name not in names and _is_state(value, self._homes) for name, value in now.items()) and all(
            name in now and self._is_same(value, now[name], compared) for name, value in state.items()
        )

    def _is_same(self, kept: Any, now: Any, compared: set[int]) -> bool:
        if isinstance(kept, Tensor):
            return kept is now and self.marks.get(id(kept)) == mark_of(now)
        if isinstance(kept, _Draws):
            return kept.is_at(now)
        if isinstance(kept, _Object):
            if kept.held is not now or id(kept) in compared:
                return kept.held is now
            compared.add(id(kept))
            return self._are_same(kept.names, kept.state, vars(now), compared)
        if _is_array(kept):
            return type(kept) is type(now) and _equal(kept, now)
        if type(kept) not in _CONTAINERS:
            return type(kept) is type(now) and bool(kept == now)
        if type(kept) is not type(now) or len(kept) != len(now):
            return False
        if type(kept) in _MAPPINGS:
            return kept.keys() == now.keys() and all(self._is_same(kept[key], now[key], compared) for key in kept)
        if isinstance(kept, (set, frozenset)):
            return bool(kept == now)
        return all(self._is_same(one, other, compared) for one, other in zip(kept, now, strict=True))

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
            new = [name for name, value in _own(module).items() if name not in names and _is_state(value, self._homes)]
            for name in new:
                del own[name]
            for name, value in state.items():
                if name not in own or _is_state(own[name], self._homes):
                    own[name] = _copy(value, copied, known)


class Originals:
    """The plain attributes themselves, to be put back after modules worked on copies.

    Args:
        modules: The modules.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._found = [(module, _parts(module), _own(module)) for module in modules if not _of_torch(module)]
        homes = _homes(module for module, _, _ in self._found)
        kept = [value for _, _, own in self._found for value in own.values() if _is_state(value, homes)]
        inside = list(_beside_constants(kept, homes))
        self._draws = [_Draws(each) for each in inside if isinstance(each, _generators())]
        self._objects = [(each, dict(vars(each))) for each in inside if _is_object(each, homes)]

    def put_back(self) -> None:
        """Give every module exactly these attributes, unless it has got other parts meanwhile."""
        for module, parts, before in self._found:
            now = vars(module)
            if _parts(module) == parts:
                for name in _own(module).keys() - before.keys():
                    del now[name]
                now.update(before)
        for held, fields in self._objects:
            now = vars(held)
            for name in now.keys() - fields.keys():
                del now[name]
            now.update(fields)
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
        elif hasattr(generator, "get_state"):  # numpy.random.RandomState
            self._state = generator.get_state()
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
        elif hasattr(self._generator, "set_state"):
            self._generator.set_state(self._state)
        else:
            self._generator.bit_generator.state = copy.deepcopy(self._state)
        return self._generator


class _Object:
    """An object and its attributes at one moment. It stays the same object, since others may hold it too.

    Args:
        held: The object.
        homes: See `_homes`.
        known: Copies by the id of the original; this one is added to it.
    """

    def __init__(self, held: Any, homes: _Homes, known: dict[int, Any]) -> None:
        known[id(held)] = self
        self.held, self.names = held, frozenset(vars(held))
        self._homes = homes
        self.state = _state_of(vars(held), homes, known)

    def restored(self, copied: Callable[[Tensor], Tensor], known: dict[int, Any]) -> Any:
        """Give the object copies of these attributes, and return it; arguments as in `_copy`."""
        if id(self) not in known:
            known[id(self)] = self.held
            own = vars(self.held)
            for name in [name for name, value in own.items() if name not in self.names and self._counts(value)]:
                del own[name]
            own.update({name: _copy(value, copied, known) for name, value in self.state.items()})
        return self.held

    def _counts(self, value: Any) -> bool:
        return _is_state(value, self._homes)


def _equal(one: Any, other: Any) -> bool:
    if _is_array(one):
        return bool(one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes())
    return torch.equal(one, other) if isinstance(one, Tensor) else repr(one) == repr(other)


def _of_torch(module: nn.Module) -> bool:
    if not type(module).__module__.startswith("torch."):
        return False
    return not (has_hooks_before(module) and any(isinstance(value, Tensor) for value in vars(module).values()))


def _homes(modules: Iterable[nn.Module]) -> _Homes:
    """Return the packages of modules, whose objects hold state of these modules."""
    return frozenset(_package(type(module)) for module in modules) - _LIBRARIES


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def _own(module: nn.Module) -> _Plain:
    held = vars(module)
    return {name: held[name] for name in held.keys() - _INTERNAL}


def _parts(module: nn.Module) -> _Parts:
    """Return what a module consists of: its modules, and the names of its parameters."""
    return (*map(id, modules_of(module).values()), *parameters_of(module))


def _state_of(attributes: _Plain, homes: _Homes, known: dict[int, Any]) -> _Plain:
    """Return copies of the attributes that are state."""
    return {name: _copy(value, _bare, known, homes) for name, value in _only_state(attributes, homes).items()}


def _only_state(attributes: _Plain, homes: _Homes) -> _Plain:
    return {name: value for name, value in attributes.items() if _is_state(value, homes)}


def _generators() -> tuple[type, ...]:
    numpy = sys.modules.get("numpy")
    own = () if numpy is None else (numpy.random.Generator, numpy.random.RandomState)
    return (torch.Generator, random.Random, *own)


def _is_array(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and type(value) is numpy.ndarray and value.dtype.kind != "O" and value.nbytes <= MOST_BYTES


def _is_object(value: Any, homes: _Homes) -> bool:
    """Tell whether the attributes of an object are state of the model."""
    kind: Any = type(value)
    return _has_attributes(kind, homes)


@lru_cache(maxsize=1000)
def _has_attributes(kind: type, homes: _Homes) -> bool:
    if kind is SimpleNamespace:
        return True
    package = _package(kind)
    if package in _LIBRARIES or not (package in homes or dataclasses.is_dataclass(kind)):
        return False
    return "__dict__" in dir(kind) and not issubclass(kind, (type, nn.Module, Tensor, BaseException))


def _is_state(value: Any, homes: _Homes) -> bool:
    if type(value) in _PLAIN_CONSTANTS:
        return True
    if isinstance(value, Tensor):
        return not isinstance(value, nn.Parameter) and not (value.requires_grad and value.is_leaf)
    if _is_container(value):
        return len(value) <= MOST and all(_is_state(each, homes) for each in _inside(value))
    if _is_object(value, homes):
        return True
    # An object may compute what isinstance asks for.
    return issubclass(type(value), (*_CONSTANTS, *_generators())) or _is_array(value)


def _is_container(value: Any) -> bool:
    kind: Any = type(value)
    return kind in _CONTAINERS or _is_named_tuple(kind)


@lru_cache(maxsize=1000)
def _is_named_tuple(kind: type) -> bool:
    return issubclass(kind, tuple) and hasattr(kind, "_make")


def _inside(container: Any) -> Iterable[Any]:
    inside: Iterable[Any] = container.values() if type(container) in _MAPPINGS else container
    return inside


def _beside_constants(
    values: Iterable[Any], homes: _Homes = frozenset(), seen: set[int] | None = None
) -> Iterator[Any]:
    """Yield what is in these values, however deep, but for constants; each object once, before what is in it."""
    seen = set() if seen is None else seen
    for value in values:
        if type(value) in _PLAIN_CONSTANTS:
            continue
        if _is_container(value):
            yield from _beside_constants(_inside(value), homes, seen)
        elif isinstance(value, _Object) or _is_object(value, homes):
            if id(value) not in seen:
                seen.add(id(value))
                yield value
                inside = value.state if isinstance(value, _Object) else vars(value)
                yield from _beside_constants(
                    (each for each in inside.values() if isinstance(value, _Object) or _is_state(each, homes)),
                    homes,
                    seen,
                )
        else:
            yield value


def _bare(tensor: Tensor) -> Tensor:
    """Return a tensor without its graph, which would otherwise live for longer."""
    return tensor if tensor.grad_fn is None else tensor.detach()


def _copy(value: Any, copied: Callable[[Tensor], Tensor], known: dict[int, Any], homes: _Homes = frozenset()) -> Any:
    """Return a copy, the same one for the same container.

    Args:
        value: State, or a copy of it, in which `_Draws` and `_Object` stand for generators and objects.
        copied: Returns what stands in place of a tensor.
        known: Copies by the id of the original; they are added to it.
        homes: See `_homes`.
    """
    if type(value) in _PLAIN_CONSTANTS:
        return value
    if isinstance(value, Tensor):
        return copied(value)
    if isinstance(value, _Draws):
        return value.restored()
    if isinstance(value, _Object):
        return value.restored(copied, known)
    if isinstance(value, _generators()):
        return _Draws(value)
    if id(value) in known:
        return known[id(value)]
    if _is_container(value):
        made = _container(value, lambda each: _copy(each, copied, known, homes))
    elif _is_array(value):
        made = value.copy()
    elif _is_object(value, homes):
        return _Object(value, homes, known)
    else:
        return value
    known[id(value)] = made
    return made


def _container(value: Any, copied: Callable[[Any], Any]) -> Any:
    """Return a container of the same kind with copies of what is in it."""
    if type(value) in _MAPPINGS:
        made = copy.copy(value)
        for key, each in value.items():
            made[key] = copied(each)
        return made
    inside, kind = (copied(each) for each in value), type(value)
    if isinstance(value, deque):
        return deque(inside, value.maxlen)
    return kind(*inside) if hasattr(kind, "_make") else kind(inside)
