"""Builds the scheme and the estimator of a run, and rejects settings that they do not support."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from torch import nn

from meltr.errors import PluginError, UserError
from meltr.hypergradients.estimators import Estimator
from meltr.hypergradients.schemes import Scheme
from meltr.hypergradients.scope import Scope
from meltr.parallel.ranks import Ranks
from meltr.plugins import Registry, load_object
from meltr.specs import EstimatorInfo, RunSpec, SchemeInfo

Kind = TypeVar("Kind", Scheme, Estimator)


def scheme_of(registry: Registry, spec: RunSpec) -> Scheme:
    """Return the scheme of a run.

    Raises:
        UserError: If the scheme is unknown, or a setting is out of range.
        PluginError: If its factory returns another type.
    """
    return _built(registry.scheme(spec.bilevel.scheme), spec.scheme_options, Scheme)  # type: ignore[type-abstract]


def estimator_of(registry: Registry, spec: RunSpec) -> Estimator:
    """Return a new estimator for a run.

    Raises:
        UserError: If the estimator is unknown, or a setting is out of range.
        PluginError: If its factory returns another type.
    """
    return _built(registry.estimator(spec.bilevel.estimator), spec.estimator_options, Estimator)  # type: ignore[type-abstract]


def bilevel_settings(spec: RunSpec, blocks: Sequence[nn.Module] | None) -> dict[str, Any]:
    """Return the arguments of `Bilevel` that are settings of a run.

    Args:
        spec: The run.
        blocks: The backbone's blocks.
    """
    outer = spec.bilevel
    return {
        "every": outer.every,
        "budget": outer.budget,
        "gamma": outer.gamma,
        "scope": Scope(outer.scope, outer.scope_blocks, blocks),
        "retain_graph": outer.retain_graph,
        "average": outer.average,
        "accumulate_weights": spec.train.accumulate_weights,
        "direct_term": outer.direct_term,
        "outer_clip_norm": outer.outer_clip_norm,
        "seed": spec.seed,
    }


def check(spec: RunSpec, ranks: Ranks, scheme: Scheme, estimator: Estimator) -> None:
    """Reject a scheme or an estimator that does not support the other settings.

    Args:
        spec: The run.
        ranks: Its processes.
        scheme: Its scheme.
        estimator: Its estimator.

    Raises:
        UserError: With the settings in conflict and what to do.
    """
    if spec.train.compile and (scheme.needs_second_derivative or estimator.needs_second_derivative):
        raise UserError(
            "double_backward cannot differentiate a compiled model twice.",
            "Use --set estimator=auto and, with a scheme that has it, --set hessian=difference; or use "
            "--set compile=false.",
        )
    if spec.train.cuda_graphs:
        _check_graphs(spec, ranks, scheme, estimator)
    outer = spec.bilevel
    if scheme.takes_inner_step and (outer.outer_batch != "shared" or outer.outer_fraction != 1):
        raise UserError(
            f"scheme={scheme.name} takes its outer step on the whole batch of an inner step.",
            "Use --set outer_batch=shared --set outer_fraction=1, or another scheme.",
        )
    if outer.outer_batch == "cross" and outer.outer_fraction != 1:
        raise UserError("outer_batch=cross needs outer_fraction=1.", "Use --set outer_fraction=1.")
    if outer.budget is not None and outer.outer_batch == "replay":
        raise UserError(
            f"budget={outer.budget} chooses the steps of outer steps, but outer_batch=replay fixes them.",
            "Use --set budget=none, or --set outer_batch=shared.",
        )
    if ranks.size > 1 and scheme.needs_second_derivative:
        raise UserError("hessian=double_backward needs one process.", "Use --set hessian=difference.")
    if ranks.size > 1 and spec.train.parallel == "fsdp" and estimator.needs_whole_weights:
        raise UserError(
            f"estimator={estimator.name} does not support sharded weights.",
            "Use --set estimator=auto (one_sided in float32, else per_task).",
        )


def _check_graphs(spec: RunSpec, ranks: Ranks, scheme: Scheme, estimator: Estimator) -> None:
    """Reject settings that a recorded evaluation cannot serve."""
    train, outer = spec.train, spec.bilevel
    reasons = {
        f"device={ranks.device}": ranks.device.type != "cuda",
        f"{ranks.size} processes": ranks.size > 1,
        f"scope={outer.scope}": outer.scope != "full",
        "activation_checkpointing=true": train.activation_checkpointing,
        "outer_batch=cross": outer.outer_batch == "cross",
        f"scheme={scheme.name}": scheme.independent_batches > 0 or scheme.needs_second_derivative,
        f"estimator={estimator.name}": estimator.needs_second_derivative,
        f"budget={outer.budget}": outer.budget is not None,  # replayed operations cannot be counted
    }
    conflicts = [reason for reason, holds in reasons.items() if holds]
    if conflicts:
        raise UserError(
            f"cuda_graphs=true does not work with {', '.join(conflicts)}.",
            "Use --set cuda_graphs=false, or change that setting.",
        )


def _built(info: SchemeInfo | EstimatorInfo, options: dict[str, Any], kind: type[Kind]) -> Kind:
    noun = kind.__name__.lower()
    try:
        built = load_object(info.factory)(**options)
    except ValueError as error:
        raise UserError(f"{noun} {info.name!r}: {error}.") from error
    if not isinstance(built, kind):
        raise PluginError(
            f"{noun} {info.name!r} ({info.factory}) returned {type(built).__name__}, expected a meltr.{kind.__name__}."
        )
    return built
