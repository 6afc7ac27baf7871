"""Counts floating-point operations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from meltr.torch_private import DispatchMode, backward_number, map_tensors, operation_of, tree_leaves


class FlopCounter(DispatchMode):
    """Within this context, adds up the operations that `torch.utils.flop_counter` has a formula for.

    Those are matrix products, convolutions and attention; a multiplication and an addition count as 2. Kernels of
    compiled models are not seen. `FlopCounterMode` itself cannot be used: its tracking of modules fails on
    ``torch.autograd.grad``.

    Attributes:
        total: All operations.
        backward: Those of them that backward passes took.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = self.backward = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation and count it."""
        formula = flop_registry.get(operation_of(func))
        if formula is not None:
            args = _of_one_type(args)
        result = func(*args, **(kwargs or {}))
        if formula is not None:
            found = int(formula(*args, **(kwargs or {}), out_val=result))
            self.total += found
            self.backward += found if backward_number() >= 0 else 0
        return result


def _of_one_type(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments of a product with all numbers of the least precise type among them.

    Under any dispatch mode, torch's derivative of ``layer_norm`` in bfloat16 with float32 weights (as autocast leaves
    it on the CPU) has float32 tangents, which later products refuse. Without a mode they are bfloat16.
    """
    kinds = {each.dtype for each in tree_leaves(args) if isinstance(each, Tensor) and each.is_floating_point()}
    if len(kinds) < 2:
        return args
    least = min(kinds, key=lambda kind: torch.finfo(kind).bits)
    cast: tuple[Any, ...] = map_tensors(lambda each: each.to(least) if each.is_floating_point() else each, args)
    return cast
