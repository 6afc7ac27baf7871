"""Guards against numbers that are not finite: in losses and gradients of every step, and in what a checkpoint holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from meltr.devices import Delayed
from meltr.errors import NonFiniteError, NonFiniteLossError
from meltr.shards import local
from meltr.torch_private import largest_values

_HINT = (
    "Lower the learning rate (--lr), clip gradients (--set clip_norm=1), warm up (--set warmup=0.1), "
    "or drop that loss (--set losses=...)."
)
_GRADIENT_HINT = (
    "A loss is finite there and its derivative is not (a square root or a logarithm at zero, say). "
    "Mend the loss, or drop it (--set losses=...)."
)
_SHOWN = 3

Mean = Callable[[Tensor], Tensor]


class FiniteGuard:
    """Stops a run at the first loss or gradient that is NaN or infinite.

    On the CPU a step is checked before the optimiser takes it. On an accelerator the answer for a step is read one step
    later, so that the check does not stall it; `flush` reads it before a checkpoint.

    Args:
        names: Names of the losses.
        device: Device of the run.
        parameters: The parameters with their names.
        mean: Averages a small tensor over the processes where each has its own gradients (sharded weights).
    """

    def __init__(
        self,
        names: Sequence[str],
        device: torch.device,
        parameters: Mapping[str, Tensor] | None = None,
        mean: Mean | None = None,
    ) -> None:
        self.names = tuple(names)
        self._parameters = dict(parameters or {})
        self._mean = mean
        self._delayed = device.type != "cpu"
        self._pending: tuple[int, Delayed] | None = None
        self._pending_gradients: tuple[int, list[str], Tensor, Delayed] | None = None

    def check(self, step: int, losses: Tensor) -> None:
        """Check the losses of `step`, shape (T+1,); on an accelerator, those of the step before.

        Raises:
            NonFiniteLossError: With the loss, its value and the step.
        """
        if self._delayed:
            self.flush()
            self._pending = (step, Delayed(losses))
        else:
            self._check_losses(step, losses.tolist())

    def check_gradients(self, step: int) -> None:
        """Check the gradients of `step`, or remember them for the next call of `check`; call it after `check`.

        Raises:
            NonFiniteError: Naming parameter and step.
        """
        found = self._largest()
        if found is None:
            return
        fine = found[1].isfinite().all()
        if self._delayed:
            self._pending_gradients = (step, *found, Delayed(fine))
        elif not fine:
            raise _bad_gradients(step, *found)

    def flush(self) -> None:
        """Check what is still pending; call this before writing a checkpoint."""
        losses, self._pending = self._pending, None
        gradients, self._pending_gradients = self._pending_gradients, None
        if losses is not None:
            self._check_losses(losses[0], losses[1].values())
        if gradients is not None and not gradients[3].values():
            raise _bad_gradients(*gradients[:3])

    def _largest(self) -> tuple[list[str], Tensor] | None:
        """Return the names of the parameters with a gradient, and its largest absolute value for each."""
        named = [(name, p.grad) for name, p in self._parameters.items() if p.grad is not None]
        parts = [(name, _values(gradient)) for name, gradient in named]
        parts = [(name, values) for name, values in parts if values.numel()]
        if not parts:
            return None
        largest = largest_values([values for _, values in parts])
        return [name for name, _ in parts], largest if self._mean is None else self._mean(largest)

    def _check_losses(self, step: int, values: Sequence[float]) -> None:
        bad = [f"{n!r} = {v}" for n, v in zip(self.names, values, strict=True) if not abs(v) < float("inf")]
        if bad:
            raise NonFiniteLossError(f"Loss {', '.join(bad)} at step {step}.", _HINT)


class StateGuard:
    """Finds tensors with numbers that are not finite in what a checkpoint would hold.

    Tensors that are so from the start, such as the mask of an attention, are none of its business.

    Args:
        model: The backbone.
        combiner: The combiner.
        optimizer: The optimiser of the backbone.
    """

    def __init__(self, model: nn.Module, combiner: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._modules = {"backbone": model, "combiner": combiner}
        self._optimizer = optimizer
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._known = frozenset(self.found())

    def found(self) -> list[str]:
        """Return a description of each tensor that is not finite, whether it was so at the start or not."""
        named = [(name, _values(tensor)) for name, tensor in self._tensors()]
        named = [(name, values) for name, values in named if values.numel() and _may_fail(values)]
        kinds: dict[tuple[torch.device, torch.dtype], list[tuple[str, Tensor]]] = {}
        for name, values in named:
            kinds.setdefault((values.device, values.dtype), []).append((name, values))
        bad = []
        for group in kinds.values():
            finite = largest_values([values for _, values in group]).isfinite().tolist()
            bad += [name for (name, _), fine in zip(group, finite, strict=True) if not fine]
        return bad

    def check(self, step: int, mean: Mean | None = None) -> None:
        """Check everything that a checkpoint of this step would hold.

        Args:
            step: Inner steps taken.
            mean: Averages a small tensor over the processes, so that all come to the same answer.

        Raises:
            NonFiniteError: Naming the tensors.
        """
        bad = [name for name in self.found() if name not in self._known]
        anywhere = len(bad) if mean is None else float(mean(torch.tensor(float(len(bad)))))
        if anywhere:
            named = _listed(bad) if bad else "A tensor of another process"
            raise NonFiniteError(f"{named} is not finite after step {step}: no checkpoint is written.", _HINT)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for what, module in self._modules.items():
            for name, tensor in module.state_dict().items():
                if isinstance(tensor, Tensor):
                    yield f"{what} tensor {name!r}", tensor
        for parameter, state in self._optimizer.state.items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    yield f"optimiser state {key!r} of {self._names.get(id(parameter), 'a parameter')!r}", value


def _bad_gradients(step: int, names: Sequence[str], largest: Tensor) -> NonFiniteError:
    bad = [name for name, value in zip(names, largest.isfinite().tolist(), strict=True) if not value]
    return NonFiniteError(
        f"The gradient of {_listed(bad)} is not finite at step {step}, and the losses are.", _GRADIENT_HINT
    )


def named_parameters(model: nn.Module, groups: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Return the parameters of an optimiser by their names in `model`; those of no module get a number."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = [parameter for group in groups for parameter in group["params"]]
    return {names.get(id(each), f"parameter {number}"): each for number, each in enumerate(parameters)}


def _values(tensor: Tensor) -> Tensor:
    """Return the numbers of a tensor that may be sharded or sparse."""
    part = local(tensor.detach())
    return part.coalesce().values() if part.layout == torch.sparse_coo else part


def _may_fail(values: Tensor) -> bool:
    return values.is_floating_point() or values.is_complex()


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
