"""What the integrations share: `Bilevel` under the precision and the accumulation of another library."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from meltr.autograd.losses import Compute, Losses
from meltr.bilevel.bilevel import Bilevel
from meltr.bilevel.results import StepResult
from meltr.errors import UserError, did_you_mean
from meltr.hypergradients.estimators import CentralDifference, OneSidedDifference
from meltr.hypergradients.setup import Setup


class FrameworkLoop:
    """A `Bilevel` whose precision and gradient scaling are those of a library, and whose windows follow its steps.

    Args:
        model: The model as the library wraps it: plain, compiled, or in DistributedDataParallel.
        combiner: m; it is moved to `device`.
        outer_optimizer: Optimiser of the combiner's parameters; None: the combiner is not trained.
        device: Device of the losses.
        autocast: Data type that the library evaluates the model in; None: that of the weights.
        scaler: The library's gradient scaler; ``.grad`` is then scaled, as its step expects.
        by_model: True if the library's wrapper of the model enters autocast; False: the loop is within autocast.
        settings: Further arguments of `Bilevel`, such as ``every`` and ``scheme``.

    Attributes:
        bilevel: The `Bilevel`.

    Raises:
        UserError: If an argument of `settings` does not exist, the model is wrapped in DataParallel, or a setting needs
            float32 forward passes that the wrapper of the model does not allow.
    """

    def __init__(
        self,
        model: nn.Module,
        combiner: nn.Module,
        outer_optimizer: Any = None,
        *,
        device: torch.device,
        autocast: torch.dtype | None = None,
        scaler: torch.amp.GradScaler | None = None,
        by_model: bool = True,
        settings: Mapping[str, Any],
    ) -> None:
        if isinstance(model, nn.DataParallel):
            raise UserError(
                "The model is wrapped in DataParallel (one process with several GPUs), which Bilevel does not support.",
                "Start one process per GPU with torchrun, or make one GPU visible: CUDA_VISIBLE_DEVICES=0.",
            )
        settings = dict(settings)
        _check_names(settings)
        setup = settings.pop("setup", None) or Setup()
        if by_model and autocast is not None:
            _check_precise(settings)
        self._device, self._own_autocast = device, by_model and autocast is not None
        self._optimizer_stepped = False
        setup = replace(setup, autocast=autocast, scaler=scaler)
        # A wrapped optimiser of the combiner would skip steps within a window, or scale them.
        outer_optimizer = without_wrapper(outer_optimizer)
        settings["inner_optimizer"] = without_wrapper(settings.get("inner_optimizer"))
        self.bilevel = Bilevel(model, combiner.to(device), outer_optimizer, setup=setup, **settings)

    def __repr__(self) -> str:
        """Return the name of the class around that of `Bilevel`."""
        return f"{type(self).__name__}({self.bilevel!r})"

    @property
    def combiner(self) -> nn.Module:
        """The combiner m."""
        return self.bilevel.combiner

    def take(self, compute: Compute | Sequence[Compute], *, accumulate: int, last: bool, **how: Any) -> StepResult:
        """Call `Bilevel.backward` for one micro-batch.

        Args:
            compute: Returns the task losses of the micro-batch; or several functions, whose losses are averaged first.
            accumulate: n, the micro-batches of one step of the optimiser; the gradients are divided by n.
            last: Whether the optimiser steps after this call, which ends the window, also before the n-th call.
            how: Further arguments of `Bilevel.backward`.
        """
        self.after_step()
        functions: Compute | list[Compute]
        if isinstance(compute, Sequence):
            functions = [self._evaluated(each) for each in compute]
        else:
            functions = self._evaluated(compute)
        with torch.autocast(self._device.type, enabled=False):
            result = self.bilevel.backward(functions, accumulate=accumulate, **how)
        self._optimizer_stepped = last
        return result

    def after_step(self) -> None:
        """Count the step that the optimiser took since the last micro-batch, if it did. Called when it matters."""
        if self._optimizer_stepped:
            self._optimizer_stepped = False
            with torch.autocast(self._device.type, enabled=False):
                self.bilevel.after_step()

    def state_dict(self) -> dict[str, Any]:
        """Return `Bilevel.state_dict`; every process must call it."""
        self.after_step()
        return self.bilevel.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state that `state_dict` returned."""
        self._optimizer_stepped = False
        self.bilevel.load_state_dict(state)

    def _evaluated(self, compute: Compute) -> Compute:
        """Return the function without the autocast of `Setup`, where the model enters its own."""
        if not (self._own_autocast and callable(compute)):
            return compute

        def outside() -> Losses:
            with torch.autocast(self._device.type, enabled=False):
                return compute()

        return outside


def without_wrapper(optimizer: Any) -> Any:
    """Return the optimiser inside the one that a library returned; any other as it is."""
    return getattr(optimizer, "optimizer", optimizer)


def _check_names(settings: Mapping[str, Any]) -> None:
    """Check that `Bilevel` has the arguments.

    Raises:
        UserError: If it lacks one.
    """
    known = inspect.signature(Bilevel).parameters.keys() - {"model", "combiner", "outer_optimizer"}
    for name in settings:
        if name not in known:
            raise UserError(f"Bilevel has no setting {name!r}.", did_you_mean(name, known))


def _check_precise(settings: Mapping[str, Any]) -> None:
    """Reject what differentiates by differences: the wrapper evaluates the model in lower precision at every call.

    Raises:
        UserError: If the scheme or the estimator does.
    """
    estimator, scheme = settings.get("estimator"), settings.get("scheme")
    if isinstance(estimator, (OneSidedDifference, CentralDifference)):
        raise UserError(
            f"{type(estimator).__name__} needs float32 forward passes, but mixed precision is on for every call of the "
            "model.",
            "Use ForwardMode() or PerTask(), or train without mixed precision.",
        )
    if getattr(scheme, "hessian", None) == "difference":
        raise UserError(
            f"{type(scheme).__name__}(hessian='difference') needs float32 forward passes, but mixed precision is on "
            "for every call of the model.",
            f"Use {type(scheme).__name__}(..., hessian='double_backward'), or train without mixed precision.",
        )


class StepMeans:
    """Means of the losses and task weights of the steps since the last log, without a wait for the device."""

    def __init__(self) -> None:
        self._count, self._sums = 0, dict[str, Tensor]()
        self._alignment: dict[str, Tensor] = {}

    def add(self, result: StepResult) -> None:
        """Add a call of `Bilevel.backward`."""
        self._count += 1
        for name, value in by_name(result, outer=False).items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        if result.outer is not None:
            self._alignment = {f"alignment/{name}": value for name, value in result.outer.alignment.items()}

    def take(self) -> dict[str, float]:
        """Return the means, and the gradient alignment of the last outer step; start anew."""
        means = {name: float(value) / self._count for name, value in self._sums.items()}
        means |= {name: float(value) for name, value in self._alignment.items()}
        self._count, self._sums, self._alignment = 0, {}, {}
        return means


def by_name(result: StepResult, *, outer: bool = True) -> dict[str, Tensor]:
    """Return the numbers of a step under the names that a log shows, shape () each.

    Args:
        result: Result of `Bilevel.backward`.
        outer: Also the gradient alignment, if an outer step was taken.
    """
    found = {f"loss/{name}": value for name, value in result.named_losses.items()}
    found |= {f"weight/{name}": value for name, value in result.weights.items()}
    if outer and result.outer is not None:
        found |= {f"alignment/{name}": value for name, value in result.outer.alignment.items()}
    return found
