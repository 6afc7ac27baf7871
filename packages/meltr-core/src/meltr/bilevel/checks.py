"""Checks of what a training loop gives to `Bilevel`, with errors that say what to write instead."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from meltr.autograd.graph import nodes_of
from meltr.autograd.losses import Compute, Losses
from meltr.bilevel.weights import Weights
from meltr.errors import LoopError, UserError
from meltr.hypergradients import estimators, schemes
from meltr.hypergradients.estimators import Auto, Estimator
from meltr.hypergradients.schemes import AIDFPLite, Scheme
from meltr.hypergradients.setup import ModelSetup
from meltr.torch_private import sequence_number

FUNCTION = "Write bilevel.backward(lambda: losses(model, batch)), so that the losses can be evaluated again."
_LINE_SEARCH = inspect.unwrap(torch.optim.LBFGS.step).__code__


def check_rule(scheme: object, estimator: object, old: Mapping[str, str]) -> tuple[Scheme, Estimator]:
    """Return scheme and estimator, the default ones in place of None.

    Args:
        scheme: The scheme that was given.
        estimator: The estimator that was given.
        old: Further keywords: ``scheme_name`` and ``estimator_name``, which took names.

    Raises:
        UserError: If one has the wrong type, such as its name as text, or an old name is unknown.
        TypeError: If there are other keywords.
    """
    if unknown := old.keys() - {"scheme_name", "estimator_name"}:
        raise TypeError(f"Bilevel() got an unexpected keyword argument {min(unknown)!r}")
    scheme = scheme or _of_old_name(schemes, Scheme, "scheme", old) or AIDFPLite()
    estimator = estimator or _of_old_name(estimators, Estimator, "estimator", old) or Auto()
    if not isinstance(scheme, Scheme):
        raise UserError(
            f"scheme must be a meltr.Scheme, got {scheme!r}.", "For example: Bilevel(..., scheme=meltr.AIDFP(terms=3))."
        )
    if not isinstance(estimator, Estimator):
        raise UserError(
            f"estimator must be a meltr.Estimator, got {estimator!r}.",
            "For example: Bilevel(..., estimator=meltr.ForwardMode()).",
        )
    return scheme, estimator


def check_gamma(gamma: float) -> None:
    """Raise ValueError if the weight of the regulariser is negative."""
    if gamma < 0:
        raise ValueError(f"gamma must not be negative, got {gamma}")


def _of_old_name(room: ModuleType, base: type, what: str, old: Mapping[str, str]) -> object:
    """Return a new scheme or estimator of core by the name that an old keyword has; None without that keyword."""
    name = old.get(f"{what}_name")
    if name is None:
        return None
    kinds = [each for each in vars(room).values() if isinstance(each, type) and issubclass(each, base)]
    by_name = {each.name: each for each in kinds if hasattr(each, "name")}
    if name not in by_name:
        raise UserError(f"{what}_name={name!r} is unknown.", f"Known: {', '.join(sorted(by_name))}.")
    now = f"{what}=meltr.{by_name[name].__name__}()"
    warnings.warn(f"{what}_name={name!r} is now {now}, with its settings.", DeprecationWarning, stacklevel=4)
    return by_name[name]()


def check_optimizer(optimizer: torch.optim.Optimizer, combiner: nn.Module) -> None:
    """Check that the outer optimiser holds the trainable parameters of the combiner, and no others.

    Raises:
        LoopError: If it holds others, misses some, ascends, or cannot step with one gradient.
    """
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    others = held - {id(parameter) for parameter in combiner.parameters()}
    missing = [name for name, each in combiner.named_parameters() if each.requires_grad and id(each) not in held]
    hint = f"Write {type(optimizer).__name__}(combiner.parameters(), ...)."
    if isinstance(optimizer, torch.optim.LBFGS):
        raise LoopError(
            "The outer optimiser is LBFGS, which needs several gradients for a step; there is one.",
            "Use an optimiser of single steps, such as torch.optim.Adam(combiner.parameters(), lr=1e-4).",
        )
    if any(group.get("maximize") for group in optimizer.param_groups):
        raise LoopError(
            f"The outer optimiser is {type(optimizer).__name__} with maximize=True: the primary loss would rise.",
            "Make it without maximize.",
        )
    if others:
        raise LoopError(
            f"The outer optimiser holds {len(others)} tensors that are not parameters of the combiner "
            f"({type(combiner).__name__}); an outer step trains the combiner alone.",
            hint,
        )
    if missing:
        raise LoopError(
            f"The outer optimiser misses {len(missing)} parameters of the combiner: {', '.join(missing[:5])}.",
            f"{hint} To keep some fixed, call requires_grad_(False) on them.",
        )


def check_line_search(outer: bool | None, *, trained: bool) -> None:
    """Check that the combiner is not trained between the evaluations of one step of the inner optimiser.

    Args:
        outer: As in `Bilevel.backward`; False or True is the loop's own choice.
        trained: Whether calls train the combiner.

    Raises:
        LoopError: If the caller is a closure of LBFGS, which compares values of one and the same combined loss.
    """
    frame = inspect.currentframe() if trained and outer is None else None
    while frame is not None:
        if frame.f_code is _LINE_SEARCH:
            raise LoopError(
                "backward() is called by a closure of LBFGS, which evaluates it several times in one step. "
                "Training the combiner in between would change the loss that it searches along.",
                "Write backward(..., outer=False) in the closure, and bilevel.outer_step(losses, losses) after the "
                "step. Or use another inner optimiser.",
            )
        frame = frame.f_back


def check_functions(compute: object) -> list[Compute]:
    """Return the loss functions of a call, one per micro-batch.

    Raises:
        LoopError: If losses are given instead of a function that returns them.
    """
    if callable(compute):
        return [compute]
    several: list[Any] = list(compute) if isinstance(compute, Sequence) else [compute]
    wrong = next((each for each in several if not callable(each)), None)
    if wrong is not None:
        given = compute if not isinstance(compute, Sequence) else wrong
        raise LoopError(
            f"Expected a function that returns the losses, or one per micro-batch; found a {type(given).__name__}.",
            FUNCTION,
        )
    return several


def check_device(combiner: nn.Module, losses: Tensor) -> None:
    """Check that the combiner is on the device of the losses.

    Raises:
        LoopError: If it is on another one.
    """
    for parameter in combiner.parameters():
        if parameter.device != losses.device:
            raise LoopError(
                f"The losses are on {losses.device}, but the combiner is on {parameter.device}.",
                f'Call combiner.to("{losses.device}") before you make the outer optimiser.',
            )
        return


def check_primary_step(primary: object, outer_part: object, *, cross: bool) -> None:
    """Check that an outer step of scheme ``primary-step`` has only the batch of its inner step.

    Raises:
        LoopError: If another batch, a part or two halves are given.
    """
    given = [name for name, each in (("primary", primary), ("outer_part", outer_part)) if each is not None]
    given += ["cross"] if cross else []
    if given:
        raise LoopError(
            f"scheme primary-step takes its outer step on the batch of an inner step; found {', '.join(given)}.",
            "Remove that argument, or use another scheme.",
        )


def check_layout(parameters: Sequence[Tensor]) -> None:
    """Check that an outer step can move the parameters.

    Raises:
        LoopError: If one is stored sparse.
    """
    found = next((each for each in parameters if each.layout != torch.strided), None)
    if found is not None:
        raise LoopError(
            f"A parameter, {tuple(found.shape)}, is stored sparse ({found.layout}), which an outer step cannot move.",
            "Store it dense, or exclude it with Bilevel(..., parameters=...). Sparse gradients are supported.",
        )


class Fresh:
    """Detects a loss function that returns losses, or uses outputs, that were computed before it was called.

    An outer step evaluates the losses again at other weights. Losses that were computed before do not change then, and
    g would be wrong without a word. Nodes of autograd graphs are numbered in the order in which they are made, so a
    node that is older than the call was made outside the function. Each thread numbers its own nodes. So an old node is
    only a suspicion: the function is called again, and the losses are old if the same node is found twice.

    Args:
        setup: Model and generators.
        weights: The parameters w.
    """

    def __init__(self, setup: ModelSetup, weights: Weights) -> None:
        self._setup, self._weights, self._trusted = setup, weights, False

    def watched(self, compute: Callable[[], Losses], *, whole: bool) -> Compute:
        """Return a function that also checks the graph of its losses.

        Args:
            compute: The function.
            whole: Check the graph as far as w; False: only the losses themselves. Under autocast, the losses alone:
                its copies of the weights are older than the call, and rightly so.
        """

        def checked() -> Losses:
            before, deep = sequence_number(), whole and not torch.is_autocast_enabled(self._setup.device.type)
            losses = compute()
            if torch.is_grad_enabled() and not self._trusted:
                old = self._older(losses, before, whole=deep)
                if old:
                    self._confirm(compute, old, whole=deep)
            return losses

        return checked

    def _older(self, losses: Losses, before: int, *, whole: bool) -> dict[Any, None]:
        """Return the nodes of the losses that are older than `before` and lead to w."""
        parts = _tensors_of(losses)
        roots = [part.grad_fn for part in parts if part.grad_fn is not None]
        nodes = nodes_of(*parts) if whole else dict.fromkeys(roots)
        old = {node: None for node in nodes if sequence_number(node) < before}
        if not (old and whole) or any(root in old for root in roots):
            return old
        w = {id(parameter) for parameter in self._weights.now()}
        return {node: None for node in old if w & _leaves_below(node)}

    def _confirm(self, compute: Callable[[], Losses], old: dict[Any, None], *, whole: bool) -> None:
        state = self._setup.random_state()
        with self._setup.preserved_buffers():
            parts = _tensors_of(compute())
        state.restore()
        again = nodes_of(*parts) if whole else dict.fromkeys(part.grad_fn for part in parts)
        if not any(node in again for node in old):
            self._trusted = True
            return
        found = "losses" if any(part.grad_fn in old for part in parts) else "losses from outputs"
        raise LoopError(
            f"The loss function returns {found} that were computed before it was called: a second call gives the same "
            "tensors, even at other weights.",
            "Call the model inside the function: bilevel.backward(lambda: losses(model(inputs), labels)).",
        )


def _tensors_of(losses: Losses) -> list[Tensor]:
    """Return the tensors as the function returned them: a reshaped tensor would have a new node."""
    if isinstance(losses, Tensor):
        return [losses]
    several = losses.values() if isinstance(losses, Mapping) else losses if isinstance(losses, Sequence) else ()
    return [each for each in several if isinstance(each, Tensor)]


def _leaves_below(node: Any) -> set[int]:
    """Return the ids of the leaves that a node leads to."""
    seen, waiting, leaves = {node}, [node], set()
    while waiting:
        current = waiting.pop()
        if hasattr(current, "variable"):
            leaves.add(id(current.variable))
        following = {each for each, _ in current.next_functions if each is not None} - seen
        seen |= following
        waiting.extend(following)
    return leaves
