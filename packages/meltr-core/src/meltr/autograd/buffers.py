"""Buffers of a model during extra evaluations of its losses, which work on copies and leave no trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from meltr.torch_private import buffers_of

_Held = list[tuple[nn.Module, dict[str, Tensor | None]]]


class BufferState:
    """The buffers of a model at one moment: the tensors themselves, and their values.

    A module may change its buffers in place (BatchNorm), assign new ones (``self.count = self.count + 1``), create them
    in the first forward pass (lazy layers, ``register_buffer`` in ``forward``), or hold several views of one memory.

    Args:
        model: The model; its submodules are included.
        keep: Copy the current values; False if `aside` is entered before they can change.
    """

    def __init__(self, model: nn.Module, *, keep: bool = True) -> None:
        self._model = model
        self._held = _held(model)
        self._kept = keep
        self._values = _copies(_tensors(self._held)) if keep else {}

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
        before = _held(self._model)
        lazy = [buffer for buffer in _tensors(before) if is_lazy(buffer)]
        copies = _copies([self._values.get(id(b), b) for b in _tensors(self._held)] if self._kept else _tensors(before))
        if self._kept:
            copies = {id(b): copies[id(self._values[id(b)])] for b in _tensors(self._held) if id(b) in self._values}
        _place(
            [
                (module, {name: None if b is None else copies.get(id(b), b) for name, b in buffers.items()})
                for module, buffers in self._held
            ]
        )
        try:
            with self.filled_in():
                yield
        finally:
            _place(before)
            with torch.no_grad():
                for buffer in lazy:  # a lazy layer fills in the buffer itself
                    if id(buffer) in self._values:
                        buffer.copy_(self._values[id(buffer)])

    @torch.no_grad()
    def restore(self) -> None:
        """Undo what a forward pass that failed did to the buffers, so that it can be tried again."""
        _place(self._held)
        for buffer in _tensors(self._held):
            value = self._values.get(id(buffer))
            if value is not None and not buffer.is_inference() and not torch.equal(buffer, value):
                buffer.copy_(value)

    def _filler(self, lazy: Sequence[Tensor]) -> Callable[[nn.Module, object], None]:
        def fill(module: nn.Module, args: object) -> None:
            for buffer in lazy:
                if not is_lazy(buffer) and id(buffer) not in self._values:
                    self._values[id(buffer)] = buffer.detach().clone()

        return fill


def preserved_buffers(model: nn.Module) -> AbstractContextManager[None]:
    """Return a context that leaves the buffers of `model` bit-identical, whatever forward passes run inside."""
    return BufferState(model, keep=False).aside()


def _held(model: nn.Module) -> _Held:
    return [(module, dict(buffers_of(module))) for module in model.modules()]


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
