"""Methods of the TorchJD library (extra ``torchjd``): aggregators of task gradients, scalarizers of task losses.

An aggregator maps the matrix J of task gradients, shape (T+1, d), to one direction u of shape (d,). Most of them
compute weights that depend on J J^T alone (UPGrad, MGDA, CAGrad, PCGrad, ...). For these, TorchJD returns only the
weights, and the rows are combined here without a copy of J. A scalarizer maps the losses to one scalar, as every
combiner does.

The library is imported only when a combiner is built.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from meltr.combiners.base import Combiner, GradientCombiner, Rows, SelfTrained, Step, as_names
from meltr.combiners.checks import SHIFT, refuse_negative
from meltr.errors import MeltrError, UserError, did_you_mean

INSTALL = 'pip install "meltr-core[torchjd]"'

_ABSTRACT = ("Aggregator", "WeightedAggregator", "GramianWeightedAggregator", "Scalarizer")
_OWN = {"FAMO": "famo", "DWA": "dwa"}
"""Methods that meltr implements itself, in a form that the engine can train and save."""
_STATE_FROM_ZERO = ("GradVac", "PCD")
"""Methods whose state is held in buffers, which are created by the first call and are 0 before it."""
_STATE_SAVED = (*_STATE_FROM_ZERO, "NashMTL", "UW", "IMTLL")
"""Methods whose state is in the state dict. Other stateful methods are not offered: their runs could not be resumed."""
_NOT_OPTIONS = ("f", "projector", "shape", "n_tasks", "update_weights_every")
"""Arguments that are not plain values, follow from the losses, or would need state that is not saved."""


class AggregatorCombiner(GradientCombiner):
    """The inner gradient from a TorchJD aggregator.

    Methods that compute weights run on the CPU in float32, on a matrix of shape (T+1, T+1). Their state, if any, is
    part of the state dict. The others (GradDrop, ConFIG, TrimmedMean) receive the full matrix J on its device.

    Args:
        losses: Names of the losses, primary first, or how many there are.
        aggregator: The aggregator.
        settings: The settings that it was built from (see `from_options`).
    """

    bargain: Tensor | None

    def __init__(
        self, losses: int | Sequence[str], aggregator: nn.Module, settings: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(as_names(losses))
        kinds = importlib.import_module("torchjd.aggregation")
        self.aggregator = aggregator
        self.method = type(aggregator).__name__
        self._weighs = isinstance(aggregator, kinds.WeightedAggregator)
        self._needs_gramian = isinstance(aggregator, kinds.GramianWeightedAggregator)
        self._settings = dict(settings or {"method": self.method})
        # `bargain` is the starting point of NashMTL's next search, its only state from step to step.
        nash = torch.ones(len(self.names), dtype=torch.float64) if self.method == "NashMTL" else None
        self.register_buffer("bargain", nash)
        self._fresh()

    def settings(self) -> dict[str, Any]:
        """Return the method and its options."""
        return dict(self._settings)

    @torch.no_grad()
    def from_gradients(self, losses: Tensor, rows: Rows) -> tuple[list[Tensor | None], Tensor]:
        """Return the direction u, one entry per parameter, and the task weights a, shape (T+1,), with J^T a = u.

        If u is not a combination of the rows, a is the smallest-norm solution of J J^T a = J u. If a gradient is not
        finite, u is the plain sum, which is not finite either: a gradient scaler then skips the step, and without one
        the engine stops at the next losses, as with every other combiner.

        Args:
            losses: l, shape (T+1,).
            rows: The gradient of every task, primary first.

        Raises:
            MeltrError: If the library fails.
        """
        columns = list(zip(*rows, strict=True))
        if self._needs_gramian:
            blocks = (_matrix([column], losses) for column in columns)
            known = torch.stack([block @ block.T for block in blocks]).sum(0).cpu()
        else:
            known = _matrix(columns, losses)
        finite = bool(known.isfinite().all())
        if finite and not self._weighs:
            u = self._call(self.aggregator, known)
            return _split(u, columns), _nearest_weights(known, u).to(losses)
        a = self._weights(known) if finite else torch.ones(len(self.names))
        return [_combine(column, a) for column in columns], a.to(losses)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AggregatorCombiner:
        """Move everything to another device, or nothing if the method runs on the CPU."""
        if not self._weighs:
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
            _move_plain_tensors(self.aggregator, fn)
        return self

    def _weights(self, known: Tensor) -> Tensor:
        """Return the weights, shape (T+1,), float32 on the CPU; `known` is J J^T or J, as the method needs."""
        aggregator: Any = self.aggregator
        if self._needs_gramian:
            return self._call(aggregator.gramian_weighting, known)
        weighting = aggregator.weighting
        if self.bargain is not None:
            weighting.prvs_alpha = self.bargain.numpy().copy()
        weights = self._call(weighting, known).to("cpu", torch.float32)
        if self.bargain is not None:
            self.bargain.copy_(torch.as_tensor(weighting.prvs_alpha))
        return weights

    def _call(self, function: Callable[[Tensor], Tensor], matrix: Tensor) -> Tensor:
        try:
            return function(matrix)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            raise MeltrError(f"TorchJD's {self.method} failed: {error}") from error

    def _fresh(self) -> None:
        """Try the aggregator on orthogonal gradients, then reset it; the shape of its state is then known.

        Raises:
            ValueError: By the library, if the options do not match the number of losses.
        """
        aggregator: Any = self.aggregator
        aggregator(torch.eye(len(self.names)))
        if self.method in _STATE_FROM_ZERO:
            for buffer in aggregator.buffers():
                buffer.zero_()
        elif self.method in _STATE_SAVED:
            aggregator.reset()


class ScalarizerCombiner(Combiner):
    """m(l) of a TorchJD scalarizer, in float32.

    Args:
        losses: Names of the losses, primary first, or how many there are.
        scalarizer: The scalarizer.
        settings: The settings that it was built from (see `from_options`).
    """

    def __init__(
        self, losses: int | Sequence[str], scalarizer: nn.Module, settings: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(as_names(losses))
        self.scalarizer = scalarizer
        self.method = type(scalarizer).__name__
        self._settings = dict(settings or {"method": self.method})
        scalarizer(torch.ones(len(self.names)))

    def forward(self, losses: Tensor) -> Tensor:
        """Map losses of shape (T+1,) to a scalar of shape ().

        Raises:
            MeltrError: If the method does not accept these losses, for example negative ones.
        """
        try:
            combined: Tensor = self.scalarizer(losses.float())
        except ValueError as error:
            raise MeltrError(f"TorchJD's {self.method} failed: {error}") from error
        return combined

    def settings(self) -> dict[str, Any]:
        """Return the method and its options."""
        return dict(self._settings)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ScalarizerCombiner:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        _move_plain_tensors(self.scalarizer, fn)
        return self


class TrainedScalarizerCombiner(ScalarizerCombiner, SelfTrained):
    """A TorchJD scalarizer whose parameters are trained together with the backbone (UW, IMTLL)."""

    def own_gradients(self, step: Step) -> list[Tensor | None]:
        """Return dm/dphi at the losses of this step.

        Raises:
            UserError: If a loss is negative.
        """
        message = f"TorchJD's {self.method} makes the weight of a negative loss grow without bound"
        refuse_negative(step.losses, self.names, message, SHIFT)
        with torch.enable_grad():
            combined = self(step.losses.detach())
            return list(torch.autograd.grad(combined, list(self.parameters()), allow_unused=True))


def from_options(losses: Sequence[str], *, method: str, method_options: Mapping[str, Any]) -> Combiner:
    """Build the combiner ``torchjd``.

    Args:
        losses: Names of the losses, primary first.
        method: Name of an aggregator or scalarizer of the library. Where both exist (``Mean``, ``Sum``, ``Constant``,
            ``Random``), the scalarizer is used: it gives the same result with one backward pass.
        method_options: Arguments of the method's class; lists become vectors.

    Raises:
        UserError: If the library or a dependency of the method is not installed, the method is unknown or not
            supported, or its options are not valid.
    """
    aggregators, scalarizers = _methods("aggregation", "Aggregator"), _methods("scalarization", "Scalarizer")
    known = {**aggregators, **scalarizers}
    if method in _OWN:
        raise UserError(
            f"TorchJD's {method} is not used here", f"meltr has its own implementation: --combiner {_OWN[method]}"
        )
    if method not in known:
        raise UserError(f"TorchJD has no method {method!r} that can be used here", did_you_mean(method, known))
    arguments = _arguments(method, known[method], losses, method_options)
    settings = {"method": method, "method_options": dict(method_options)}
    try:
        made = known[method](**arguments)
        if method not in scalarizers:
            return AggregatorCombiner(losses, made, settings)
        trained = any(parameter.requires_grad for parameter in made.parameters())
        return (TrainedScalarizerCombiner if trained else ScalarizerCombiner)(losses, made, settings)
    except ImportError as error:
        command = re.search(r'pip install "[^"]+"', str(error))
        reason = str(error).partition(" Install ")[0]
        hint = f"Install them: {command[0] if command else INSTALL}"
        raise UserError(f"TorchJD's {method} cannot be built: {reason}", hint) from error
    except Exception as error:
        message = f"TorchJD's {method} refuses {dict(method_options)} for {len(losses)} losses: {error}"
        raise UserError(message, _usage(method, known[method])) from error


def _methods(module_name: str, base: str) -> dict[str, Any]:
    """Return the usable classes of one module of the library, by name."""
    try:
        module = importlib.import_module(f"torchjd.{module_name}")
        stateful = importlib.import_module("torchjd").Stateful
    except ImportError as error:
        raise UserError(f"combiner 'torchjd' needs the library TorchJD: {error}", f"Install it: {INSTALL}") from error
    found = {name: getattr(module, name) for name in module.__all__ if name not in (*_ABSTRACT, *_OWN)}
    return {
        name: each
        for name, each in found.items()
        if issubclass(each, getattr(module, base)) and (name in _STATE_SAVED or not issubclass(each, stateful))
    }


def _options(kind: Any) -> dict[str, inspect.Parameter]:
    """Return the arguments of a class that a user can set."""
    parameters = inspect.signature(kind).parameters
    return {name: each for name, each in parameters.items() if name not in _NOT_OPTIONS}


def _usage(method: str, kind: Any) -> str:
    shown = [
        name if each.default is inspect.Parameter.empty else f"{name}={each.default}"
        for name, each in _options(kind).items()
    ]
    return f"Options of {method} (--set method_options={{name: value}}): {', '.join(shown) or 'none'}."


def _arguments(method: str, kind: Any, losses: Sequence[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments for `kind`: the given options, lists as vectors, and those that follow from the losses."""
    known = _options(kind)
    unknown = [name for name in options if name not in known]
    missing = [name for name, each in known.items() if each.default is inspect.Parameter.empty and name not in options]
    if unknown:
        raise UserError(f"TorchJD's {method} has no option {unknown[0]!r}", _usage(method, kind))
    if missing:
        raise UserError(f"TorchJD's {method} needs method_options: {', '.join(missing)}", _usage(method, kind))
    counts = {name: len(losses) for name in ("shape", "n_tasks") if name in inspect.signature(kind).parameters}
    vectors = {
        name: torch.tensor([float(each) for each in value]) if isinstance(value, (list, tuple)) else value
        for name, value in options.items()
    }
    return {**counts, **vectors}


def _matrix(columns: Sequence[Sequence[Tensor | None]], losses: Tensor) -> Tensor:
    """Return the columns of J as one float32 matrix of shape (T+1, n); parameters that no task uses are skipped."""
    firsts = [next((part for part in column if part is not None), None) for column in columns]
    sizes = [0 if first is None else first.numel() for first in firsts]
    device = next((first.device for first in firsts if first is not None), losses.device)
    matrix = torch.zeros(len(losses), sum(sizes), device=device)
    for column, block in zip(columns, matrix.split(sizes, 1), strict=True):
        for part, row in zip(column, block, strict=True):
            if part is not None:
                row.copy_(part.flatten())
    return matrix


def _nearest_weights(matrix: Tensor, u: Tensor) -> Tensor:
    """Return the smallest-norm solution a of J J^T a = J u to float32 precision, shape (T+1,), on the CPU."""
    gramian, products = (matrix @ matrix.T).cpu(), (matrix @ u).cpu()
    weights: Tensor = torch.linalg.lstsq(gramian.double(), products.double(), rcond=1e-6, driver="gelsd").solution
    return weights


def _split(u: Tensor, columns: Sequence[Sequence[Tensor | None]]) -> list[Tensor | None]:
    """Split the vector u, shape (n,), into the shapes and types of the parameters; the inverse of `_matrix`."""
    pieces: list[Tensor | None] = []
    start = 0
    for column in columns:
        first = next((part for part in column if part is not None), None)
        if first is None:
            pieces.append(None)
            continue
        pieces.append(u[start : start + first.numel()].view_as(first).to(first))
        start += first.numel()
    return pieces


def _combine(column: Sequence[Tensor | None], weights: Tensor) -> Tensor | None:
    """Return sum_t weights_t * column_t, or None if every entry is None."""
    total: Tensor | None = None
    for part, weight in zip(column, weights.tolist(), strict=True):
        if part is not None:
            total = weight * part if total is None else total.add_(part, alpha=weight)
    return total


def _move_plain_tensors(module: nn.Module, fn: Callable[[Tensor], Tensor]) -> None:
    """Apply `fn` to the option vectors, which the library stores as plain attributes that ``.to`` does not move."""
    for each in module.modules():
        for name, value in list(vars(each).items()):
            if isinstance(value, Tensor):
                setattr(each, name, fn(value))
