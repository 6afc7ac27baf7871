"""One step of the outer optimiser on the combiner's parameters phi."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from meltr.bilevel.checks import check_optimizer
from meltr.devices import Delayed
from meltr.parallel.sharing import Sharing
from meltr.torch_private import can_skip_on_device, step_unless


@dataclass(frozen=True)
class Update:
    """A step of the outer optimiser; tensors stay on their device.

    Args:
        norm: Norm of phi's gradient, averaged over processes, before clipping, shape ().
        finite: False if the step was skipped because a number was not finite, shape ().
    """

    norm: Tensor
    finite: Tensor


class CombinerUpdate:
    """Passes phi's gradient to the outer optimiser, unless it is not finite.

    A fused optimiser of torch skips the step on the device, so that the host does not wait for the answer. With any
    other optimiser the host waits once per step.

    Args:
        combiner: m; its trainable parameters are phi.
        optimizer: The outer optimiser.
        sharing: How values are averaged over processes.
        clip_norm: Clip phi's gradient to this norm; None: no clipping.
        log: Called with one line of text when a step is skipped; by a fused optimiser, at the next step.
    """

    def __init__(
        self,
        combiner: nn.Module,
        optimizer: torch.optim.Optimizer,
        sharing: Sharing,
        clip_norm: float | None,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._combiner, self._optimizer, self._sharing, self._clip_norm = combiner, optimizer, sharing, clip_norm
        self._log, self._held = log, self._counts()
        self._unread: tuple[Delayed, str] | None = None

    def take(self, gradients: Sequence[Tensor | None], *others: Tensor, what: str) -> Update:
        """Average phi's gradient over the processes, and take a step if all numbers are finite.

        Args:
            gradients: One per trainable parameter, in their order; None leaves that parameter unchanged.
            others: Tensors that must be finite too.
            what: The line to log if the step is skipped.

        Raises:
            LoopError: If the optimiser got other parameters since it was checked, or phi more than it holds.
        """
        if self._counts() != self._held:
            check_optimizer(self._optimizer, self._combiner)
            self._held = self._counts()
        averaged = self._sharing.mean_small(gradients)
        present = [gradient for gradient in averaged if gradient is not None]
        norm = torch.nn.utils.get_total_norm(present) if present else _zero(self._combiner)
        finite = torch.isfinite(norm)
        for other in others:
            finite = finite & torch.isfinite(other).all().to(finite.device)
        self._report()
        if can_skip_on_device(self._optimizer):
            self._unread = (Delayed(finite), what)
            self._step(averaged, unless=~finite)
        elif bool(finite):
            self._step(averaged)
        else:
            self._log(what)
        return Update(norm, finite)

    def _counts(self) -> tuple[int, int]:
        """Return how many tensors the optimiser holds, and how many parameters phi has."""
        held = sum(len(group["params"]) for group in self._optimizer.param_groups)
        return held, sum(parameter.requires_grad for parameter in self._combiner.parameters())

    def _report(self) -> None:
        """Say so if the step before was skipped on the device."""
        if self._unread is not None and not self._unread[0].values():
            self._log(self._unread[1])
        self._unread = None

    def _step(self, gradients: Sequence[Tensor | None], unless: Tensor | None = None) -> None:
        trainable = [parameter for parameter in self._combiner.parameters() if parameter.requires_grad]
        for parameter, gradient in zip(trainable, gradients, strict=True):
            parameter.grad = gradient
        if self._clip_norm is not None and any(gradient is not None for gradient in gradients):
            torch.nn.utils.clip_grad_norm_(trainable, self._clip_norm)
        if unless is None:
            self._optimizer.step()
        else:
            step_unless(self._optimizer, unless)
        self._optimizer.zero_grad(set_to_none=True)


def _zero(module: nn.Module) -> Tensor:
    parameter = next(module.parameters(), None)
    return torch.zeros((), device=None if parameter is None else parameter.device)
