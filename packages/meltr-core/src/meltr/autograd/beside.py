"""Modules that the losses call and the model does not contain, such as a criterion with a queue of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from meltr.torch_private import is_borrowed, is_compiled


class Beside:
    """Finds the modules beside a model that its losses call.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._known: WeakSet[nn.Module] = WeakSet()
        self._compiled = False

    def roots(self) -> tuple[nn.Module, ...]:
        """Return the model, and the modules beside it that are known so far."""
        return (self._model, *self._known)

    @contextmanager
    def watched(self, found: Callable[[nn.Module], object]) -> Iterator[None]:
        """Within this context, call `found` with every module that is not known yet, just before its forward.

        What is compiled is not watched, since a hook compiles it again: neither a compiled model, nor a compiled loss
        function, once it was met. Nor are wrappers around the model, and modules whose weights ``torch.func.vmap`` lent
        for the call.

        Args:
            found: Called once per module; the modules inside it are not reported.
        """
        inside = {id(each) for root in self.roots() for each in root.modules()}

        def look(module: nn.Module, args: Any) -> None:
            if torch.compiler.is_compiling():
                self._compiled = True
                return
            if id(module) in inside or is_borrowed(module):
                return
            parts = list(module.modules())
            around = any(each is self._model for each in parts)  # a wrapper, such as DistributedDataParallel
            inside.update([id(module)] if around else map(id, parts))
            if not around:
                self._known.add(module)
                found(module)

        if self._compiled or any(map(is_compiled, self._model.modules())):
            yield
            return
        handle = register_module_forward_pre_hook(look)
        try:
            yield
        finally:
            handle.remove()
