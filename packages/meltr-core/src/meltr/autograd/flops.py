"""Counts floating-point operations."""

from __future__ import annotations

from typing import Any

from torch.utils.flop_counter import flop_registry

from meltr.torch_private import DispatchMode, backward_number, operation_of


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
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(operation_of(func))
        if formula is not None:
            found = int(formula(*args, **(kwargs or {}), out_val=result))
            self.total += found
            self.backward += found if backward_number() >= 0 else 0
        return result
