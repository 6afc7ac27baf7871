"""The variants of a run that are measured side by side, derived from the choices that the settings offer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from meltr.errors import UserError, did_you_mean
from meltr.plugins import Registry, load_object
from meltr.setting_keys import alternatives
from meltr.settings import FIDELITY
from meltr.specs import BilevelSpec, RunSpec

REFERENCE = "sum"
"""Name of the combiner for multi-task learning, the reference of every comparison."""

ORACLE = "double_backward"
"""The estimator that differentiates the backward pass, as the released code does."""


EXACT = "exact"
"""The variant that is trained: the run itself, with g computed by one backward pass per task."""

DEFAULT = BilevelSpec().scheme
"""The default scheme."""

_RECOMPUTE = {"bilevel.scheme": DEFAULT, "bilevel.estimator": "auto", "bilevel.retain_graph": False}

_CROSS = {"bilevel.scheme": DEFAULT, "bilevel.estimator": "auto", "bilevel.outer_batch": "cross"}

FRACTIONS = (0.5, 0.25)
"""Fractions of the batch for the outer step."""

BLOCKS = (2, 4)
"""Numbers of last blocks for the outer step, besides one; the user may choose others."""

STRIDES = (2, 4)
"""Multiples of K."""


@dataclass(frozen=True)
class Variant:
    """A run with other settings.

    Args:
        name: The name used with ``--variants``.
        summary: A short description.
        settings: Dotted setting -> value.
        comparable: True if its hypergradient has the same objective and batch as those of the others.
    """

    name: str
    summary: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    comparable: bool = True


def choices(model: type[BaseModel], name: str) -> tuple[str, ...]:
    """Return the values that a setting may have, in order; empty if there is no such setting."""
    info = model.model_fields.get(name)
    kinds = [] if info is None else alternatives(info.annotation)
    return tuple(word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind))


def schemes(registry: Registry) -> tuple[str, ...]:
    """Return the names of all schemes, the default one first."""
    return (DEFAULT, *(name for name in registry.schemes if name != DEFAULT))


def estimators(registry: Registry) -> tuple[str, ...]:
    """Return the names of all estimators except ``auto``."""
    return tuple(name for name in registry.estimators if name != "auto")


def exact_hessian(registry: Registry, scheme: str) -> dict[str, Any]:
    """Return the settings for exact Hessian-vector products of a scheme; empty if it uses no such products."""
    path = registry.scheme(scheme).options
    has_choice = path is not None and "hessian" in load_object(path).model_fields
    return {"scheme_options.hessian": ORACLE} if has_choice else {}


def all_variants(spec: RunSpec, registry: Registry) -> dict[str, Variant]:
    """Return Table 8: multi-task learning, each scheme, the default scheme with each estimator, the released code.

    Args:
        spec: The run that they are variants of.
        registry: The plugins found.
    """
    default = DEFAULT
    found = [Variant(REFERENCE, "multi-task learning", {"combiner": REFERENCE}, comparable=False)]
    for name in schemes(registry):
        found.append(Variant(name, f"scheme {name}", {"bilevel.scheme": name, "bilevel.estimator": "auto"}))
    for name in estimators(registry):
        settings = {"bilevel.scheme": default, "bilevel.estimator": name}
        found.append(Variant(name, f"{default} by {name}", settings))
    found.append(Variant("recompute", f"{default}, evaluated again instead of keeping the graph", _RECOMPUTE))
    found.append(
        Variant("cross", f"{default}, one half of the batch for v and the other for J", _CROSS, comparable=False)
    )
    fidelity = {key: value for key, value in FIDELITY["released"].items() if _applies(key, spec)}
    released = {**fidelity, "bilevel.scheme": default, "bilevel.estimator": ORACLE}
    found.append(Variant("released", f"{default} as released", released, comparable=False))
    return {variant.name: variant for variant in found}


def _applies(key: str, spec: RunSpec) -> bool:
    """Tell whether the combiner in use has a setting."""
    section, _, name = key.partition(".")
    return section != "combiner_options" or name in spec.combiner_options


def choose(spec: RunSpec, registry: Registry, names: str | None) -> dict[str, Variant]:
    """Return the variants that the user named, separated by commas, with the reference first; None: all variants.

    Raises:
        UserError: If a name is unknown.
    """
    known = all_variants(spec, registry)
    if names is None:
        return known
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in known:
            raise UserError(f"there is no variant {name!r}", did_you_mean(name, known))
    return {name: known[name] for name in dict.fromkeys([REFERENCE, *wanted])}


def all_approximations(spec: RunSpec, *, blocks: Sequence[int] = BLOCKS) -> dict[str, Variant]:
    """Return the exact outer step of a run, and cheaper ones.

    Args:
        spec: The run that they are variants of.
        blocks: Numbers of last blocks for ``scope=last_block``, besides one.
    """
    cheaper: list[tuple[str, str, dict[str, Any]]] = [
        (REFERENCE, "multi-task learning", {"combiner": REFERENCE}),
        (EXACT, "the run as it is", {}),
    ]
    for scope in choices(BilevelSpec, "scope"):
        if scope != spec.bilevel.scope:
            cheaper.append((scope, f"g over the parameters of scope {scope}", {"bilevel.scope": scope}))
    for count in sorted(set(blocks)):
        settings = {"bilevel.scope": "last_block", "bilevel.scope_blocks": count}
        cheaper.append((f"last_{count}_blocks", f"g over the heads and the last {count} blocks", settings))
    for part in FRACTIONS:
        cheaper.append((f"batch/{1 / part:.0f}", f"g on {part:.0%} of the batch", {"bilevel.outer_fraction": part}))
    cheaper.append(("one_sided", "g by one-sided differences", {"bilevel.estimator": "one_sided"}))
    cheaper.append(("difference", "g by central differences", {"bilevel.estimator": "difference"}))
    if spec.train.precision != "bf16":
        cheaper.append(("bf16", "training and g under bf16 autocast", {"train.precision": "bf16"}))
    for stride in STRIDES:
        every = stride * spec.bilevel.every
        cheaper.append((f"K={every}", f"an outer step every {every} steps", {"bilevel.every": every}))
    return {name: Variant(name, summary, settings, comparable=False) for name, summary, settings in cheaper}


def choose_approximations(spec: RunSpec, names: str | None) -> dict[str, Variant]:
    """Return the approximations that the user named (separated by commas) after reference and exact step; None: all.

    Raises:
        UserError: If a name is unknown.
    """
    named = [] if names is None else [name.strip() for name in names.split(",") if name.strip()]
    counts = [int(found[1]) for name in named if (found := re.fullmatch(r"last_([1-9]\d*)_blocks", name))]
    known = all_approximations(spec, blocks=(*BLOCKS, *counts))
    wanted = list(known) if names is None else named
    for name in wanted:
        if name not in known:
            raise UserError(f"there is no approximation {name!r}", did_you_mean(name, known))
    return {name: known[name] for name in dict.fromkeys([REFERENCE, EXACT, *wanted])}
