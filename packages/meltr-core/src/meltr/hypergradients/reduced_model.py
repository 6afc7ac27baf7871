"""The reduced outer step: the parameters in scope, and the modules below them that are not evaluated again.

With ``scope`` the direction q is zero outside a set S of parameters near the losses. Then v and g need no backward
pass below S (autograd stops there by itself), and no forward pass below S either: the output of the modules below S
does not change when S is perturbed, so their output in the first evaluation is used again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from meltr.autograd.random_state import RandomState
from meltr.torch_private import map_tensors, saved_tensors_are_hooked, tree_leaves, version


class Ancestry:
    """Finds the parameters that a tensor depends on, by walking its autograd graph; every node is visited once.

    Args:
        parameters: The parameters to look for.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._names = {id(parameter): index for index, parameter in enumerate(parameters)}
        self._known: dict[Any, frozenset[int]] = {}

    def of(self, value: Any) -> frozenset[int]:
        """Return the indices of the parameters that tensors in `value` (nested lists, dicts, tuples) depend on."""
        found: set[int] = set()
        for leaf in tree_leaves(value):
            if not isinstance(leaf, Tensor):
                continue
            if leaf.grad_fn is not None:
                found |= self._node(leaf.grad_fn)
            elif id(leaf) in self._names:
                found.add(self._names[id(leaf)])
        return frozenset(found)

    def _node(self, start: Any) -> frozenset[int]:
        waiting = [start]
        while waiting:
            node = waiting[-1]
            if node in self._known:
                waiting.pop()
                continue
            following = [each for each, _ in node.next_functions if each is not None]
            unknown = [each for each in following if each not in self._known]
            if unknown:
                waiting.extend(unknown)
                continue
            own = getattr(node, "variable", None)
            found = frozenset() if own is None or id(own) not in self._names else frozenset([self._names[id(own)]])
            self._known[node] = found.union(*(self._known[each] for each in following))
            waiting.pop()
        return self._known[start]


@dataclass
class _Kept:
    """What one call of a module returned: `output` (detached), and the generator states after the call.

    Attributes:
        versions: Version counters of the tensors in it; a change shows that the caller modified one in place.
        inside: How many recorded modules were called inside this call.
    """

    output: Any
    versions: list[int]
    after: RandomState
    inside: dict[nn.Module, int]

    def intact(self) -> bool:
        return _versions(self.output) == self.versions


_Tape = dict[nn.Module, list[_Kept | None]]


class ReducedModel:
    """The parameters in the scope of an outer step, and the modules below them, which are not evaluated again.

    Args:
        model: The backbone.
        parameters: The parameters in scope.
    """

    def __init__(self, model: nn.Module, parameters: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)
        self._ids = {id(parameter) for parameter in parameters}
        self._below = list(dict.fromkeys(self._outermost_without(model)))  # one may be a part of several others
        self._tapes: WeakKeyDictionary[Any, _Tape] = WeakKeyDictionary()

    def _outermost_without(self, module: nn.Module) -> Iterator[nn.Module]:
        """Yield the largest modules that hold parameters, but none in scope."""
        own = list(module.parameters())
        callable_ = type(module).forward is not nn.Module.forward
        if own and callable_ and not any(id(parameter) in self._ids for parameter in own):
            yield module
            return
        for child in module.children():
            yield from self._outermost_without(child)

    @contextmanager
    def recording(self, function: Any, state: Callable[[], RandomState]) -> Iterator[None]:
        """Within this context, keep what the modules below the scope return.

        A call is not kept if its input or output depends on parameters in scope (a module used again after them), or
        contains anything but tensors and plain values, because such a dependence would not be visible.

        Args:
            function: The loss function that is being evaluated.
            state: Returns a snapshot of the random number generators.
        """
        ancestry = Ancestry(self.parameters)
        tape: _Tape = {module: [] for module in self._below}

        def record(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                number = len(tape[module])
                tape[module].append(None)
                before = {each: len(calls) for each, calls in tape.items()}
                output = forward(*args, **kwargs)
                if _is_plain((args, kwargs, output)) and not ancestry.of((args, kwargs, output)):
                    detached = map_tensors(_detached, output)
                    inside = {
                        each: len(calls) - before[each] for each, calls in tape.items() if len(calls) > before[each]
                    }
                    for each, count in inside.items():
                        tape[each][before[each] :] = [None] * count
                    tape[module][number] = _Kept(detached, _versions(detached), state(), inside)
                return output

            return call

        with _replaced_forwards(self._below, record):
            yield
        self._tapes[function] = tape

    @contextmanager
    def skipping(self, function: Any) -> Iterator[None]:
        """Within this context, modules below the scope return what they returned when `function` was recorded.

        They are evaluated again if the caller has modified that output in place since, or if the call is in a
        checkpointed region, whose backward pass calls the module again.
        """
        tape = self._tapes.get(function)
        if tape is None:
            yield
            return
        counts = dict.fromkeys(self._below, 0)

        def skip(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                number = counts[module]
                counts[module] += 1
                kept = tape[module][number] if number < len(tape[module]) else None
                if kept is None or not kept.intact() or _is_checkpointed():
                    return forward(*args, **kwargs)
                for each, count in kept.inside.items():
                    counts[each] += count
                kept.after.restore()
                return kept.output

            return call

        with _replaced_forwards(self._below, skip):
            yield


_PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)


def _is_plain(value: Any) -> bool:
    """Tell whether a value consists only of tensors and plain values, in lists, tuples, dicts and the like."""
    return all(
        not leaf.is_inference() if isinstance(leaf, Tensor) else leaf is None or isinstance(leaf, _PLAIN)
        for leaf in tree_leaves(value)
    )


def _is_checkpointed() -> bool:
    """Tell whether saved tensors currently pass through hooks, as activation checkpointing installs them."""
    return torch.is_grad_enabled() and saved_tensors_are_hooked()


def _versions(value: Any) -> list[int]:
    return [version(leaf) for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _detached(tensor: Tensor) -> Tensor:
    return tensor.detach()


@contextmanager
def _replaced_forwards(
    modules: Sequence[nn.Module], wrap: Callable[[nn.Module, Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Within this context, replace the ``forward`` of every module."""
    before = [vars(module).get("forward") for module in modules]
    for module in modules:
        object.__setattr__(module, "forward", wrap(module, module.forward))
    try:
        yield
    finally:
        for module, own in zip(modules, before, strict=True):
            if own is None:
                object.__delattr__(module, "forward")
            else:
                object.__setattr__(module, "forward", own)
