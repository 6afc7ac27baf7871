"""What a model holds besides its weights, during extra evaluations of its losses: they leave no trace."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from meltr.autograd.attributes import Attributes, Originals
from meltr.autograd.still import Known, mark_of
from meltr.torch_private import buffers_of, parameters_of, preserved_versions

_Held = list[tuple[nn.Module, dict[str, Tensor | None]]]


class BufferState:
    """The buffers of a model at one moment: the tensors themselves, and their values; and its plain attributes.

    A module may change its buffers in place (BatchNorm), assign new ones (``self.count = self.count + 1``), create them
    in the first forward pass (lazy layers, ``register_buffer`` in ``forward``), or hold several views of one memory.
    It may also keep state in plain attributes (`meltr.autograd.attributes`), such as the place in a queue.

    Args:
        roots: The model, and modules beside it; their submodules are included.
        keep: Copy the current values; False if `aside` is entered before they can change.
        known: Which other tensors move; None: frozen weights do not, and everything in plain attributes may.
    """

    def __init__(self, *roots: nn.Module, keep: bool = True, known: Known | None = None) -> None:
        self._roots, self._kept, self._known = roots, keep, known
        modules = self._modules()
        self._held = _held(modules)
        self._attributes = Attributes(modules)
        self._frozen = [] if known is None else known.frozen(modules)
        self._weights = [] if known is None else known.to_copy(self._frozen)
        self._values = _copies(self._all_tensors()) if keep else {}

    def add(self, root: nn.Module) -> None:
        """Include a further module, with its current values, if they were copied for the others."""
        other = BufferState(root, keep=self._kept, known=self._known)
        self._roots = (*self._roots, root)
        self._held += other._held
        self._weights += other._weights
        self._frozen += other._frozen
        self._attributes.extend(other._attributes)
        self._values |= other._values

    def learn(self) -> None:
        """Note, after an evaluation, what it has moved."""
        if self._known is not None:
            for place in self._frozen:
                self._known.learn(place, self._values.get(id(place.weight)))
            for tensor in self._attributes.tensors:
                mark = self._attributes.marks[id(tensor)]
                self._known.learn_attribute(tensor, mark, self._values.get(id(tensor)))

    def may_have_moved(self) -> bool:
        """Tell whether there are buffers, which a forward pass may change, or other state that has changed."""
        weights = any(
            mark_of(each.weight) != each.mark or not torch.equal(each.weight, self._values[id(each.weight)])
            for each in self._weights
        )
        return weights or bool(_tensors(_held(self._modules()))) or self._attributes.changed()

    def _modules(self) -> list[nn.Module]:
        return list(dict.fromkeys(each for root in self._roots for each in root.modules()))

    @contextmanager
    def filled_in(self) -> Iterator[None]:
        """Within this context, note the buffers of each lazy layer just before its first forward pass fills them in."""
        with ExitStack() as stack:
            for module, buffers in self._held:
                lazy = [buffer for buffer in buffers.values() if buffer is not None and is_lazy(buffer)]
                if lazy:
                    stack.callback(module.register_forward_pre_hook(self._filler(lazy)).remove)
            yield

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Within this context the model works on copies of these buffers; afterwards it has the originals, unchanged.

        The model stays in training mode, because eval mode would compute a different function. A graph built inside the
        context holds the copies, and one built before holds the originals: both can be differentiated later.
        """
        modules = self._modules()
        before, originals = _held(modules), Originals(modules)
        lazy = [buffer for buffer in _tensors(before) if is_lazy(buffer)]
        copies = self._fresh_copies(_tensors(before))
        _place(
            [
                (module, {name: None if b is None else copies.get(id(b), b) for name, b in buffers.items()})
                for module, buffers in self._held
            ]
        )
        self._attributes.place(lambda tensor: copies.get(id(tensor), tensor))
        for place in self._weights:
            place.put(nn.Parameter(copies[id(place.weight)], requires_grad=False))
        self._note_copies(copies)
        try:
            with self.filled_in():
                yield
        finally:
            _place(before)
            for place in self._weights:
                place.put(place.weight)
            originals.put_back()
            if self._known is not None:
                self._known.forget_copies()
            with torch.no_grad(), preserved_versions(lazy):  # a graph built inside holds them
                for buffer in lazy:  # a lazy layer fills in the buffer itself
                    if id(buffer) in self._values:
                        buffer.copy_(self._values[id(buffer)])

    def _note_copies(self, copies: Mapping[int, Tensor]) -> None:
        if self._known is None or self._kept:
            return
        for tensor in self._attributes.tensors:
            if id(tensor) in copies:
                self._known.copied(copies[id(tensor)], tensor)
        for place in self._weights:
            self._known.copied(parameters_of(place.module)[place.name], place.weight)

    def _all_tensors(self) -> list[Tensor]:
        still = () if self._known is None else self._known.attributes
        plain = (tensor for tensor in self._attributes.tensors if tensor not in still)
        return [*_tensors(self._held), *plain, *(each.weight for each in self._weights)]

    def _fresh_copies(self, now: Sequence[Tensor]) -> dict[int, Tensor]:
        """Return copies of the kept values, or else of the current ones, by the id of the tensor that they stand for.

        Args:
            now: The current buffers.
        """
        if not self._kept:
            return _copies([*now, *self._all_tensors()])
        copies = _copies([self._values.get(id(each), each) for each in self._all_tensors()])
        return {id(b): copies[id(self._values[id(b)])] for b in self._all_tensors() if id(b) in self._values}

    @torch.no_grad()
    def restore(self) -> None:
        """Undo what a forward pass that failed did to the buffers, so that it can be tried again."""
        _place(self._held)
        self._attributes.place(lambda tensor: tensor)
        for buffer in self._all_tensors():
            value = self._values.get(id(buffer))
            if value is not None and not buffer.is_inference() and not torch.equal(buffer, value):
                buffer.copy_(value)

    def _filler(self, lazy: Sequence[Tensor]) -> Callable[[nn.Module, object], None]:
        def fill(module: nn.Module, args: object) -> None:
            for buffer in lazy:
                if not is_lazy(buffer) and id(buffer) not in self._values:
                    self._values[id(buffer)] = buffer.detach().clone()

        return fill


def preserved_buffers(*roots: nn.Module, known: Known | None = None) -> AbstractContextManager[None]:
    """Return a context that leaves the buffers of modules bit-identical, whatever forward passes run inside.

    Args:
        roots: The modules.
        known: Which other tensors move; None: frozen weights do not, and everything in plain attributes may.
    """
    return BufferState(*roots, keep=False, known=known).aside()


def _held(modules: Iterable[nn.Module]) -> _Held:
    return [(module, dict(buffers_of(module))) for module in modules]


def _tensors(held: _Held) -> list[Tensor]:
    return [buffer for _, buffers in held for buffer in buffers.values() if buffer is not None]


def _place(held: _Held) -> None:
    """Give every module exactly these buffers."""
    for module, buffers in held:
        own = buffers_of(module)
        if list(own) != list(buffers) or any(own[name] is not buffer for name, buffer in buffers.items()):
            own.clear()
            own.update(buffers)


def _copies(buffers: Sequence[Tensor]) -> dict[int, Tensor]:
    """Return copies, by the id of the original; copies share memory where the originals do.

    Buffers that a lazy layer has not filled in yet, and those that require gradients, are not copied: they stay leaves.
    """
    wanted = {id(buffer): buffer for buffer in buffers if not is_lazy(buffer) and not buffer.requires_grad}
    memories: dict[int, list[int]] = {}
    for key, buffer in wanted.items():
        if buffer.layout == torch.strided and buffer.numel() and buffer.untyped_storage().data_ptr():
            memories.setdefault(buffer.untyped_storage().data_ptr(), []).append(key)
    copies: dict[int, Tensor] = {}
    for keys in memories.values():
        if len(keys) > 1:
            memory = wanted[keys[0]].untyped_storage().clone()
            copies.update({key: _view(memory, wanted[key]) for key in keys})
    for key, buffer in wanted.items():
        if key not in copies:
            copies[key] = buffer.detach().clone()
    return copies


def _view(memory: torch.UntypedStorage, like: Tensor) -> Tensor:
    """Return a tensor in `memory` with the offset, shape and strides that `like` has in its own memory."""
    empty = torch.empty(0, dtype=like.dtype, device=like.device)
    return empty.set_(memory, like.storage_offset(), like.size(), like.stride())
