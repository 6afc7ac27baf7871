"""The reference estimator (the oracle), chosen among the exact ones with the help of an independent one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from meltr.errors import PluginError
from meltr.verify.agreement import agreement, cause
from meltr.verify.fixed_run import FixedRun, Found
from meltr.verify.variants import ORACLE

TOLERANCES = {"fp32": (1e-3, 1e-2)}
"""Relative error allowed for exact estimators and for `DIFFERENCES`, by precision."""

DIFFERENCES = ("one_sided", "difference")
"""Estimators that use finite differences."""

EXACT = (ORACLE, "per_task")
"""Estimators that are exact for every model they support; one of them becomes the oracle."""

SHARED = {"bilevel.outer_batch": "shared"}


@dataclass(frozen=True)
class Oracle:
    """The estimator that is taken as exact, its result in full precision, and why other exact ones were rejected.

    Args:
        name: Its name.
        found: Its result, with g.
        unfit: Exact estimators that are wrong or cannot run here -> why.
    """

    name: str
    found: Found
    unfit: Mapping[str, str]


def choose_oracle(run: FixedRun) -> Oracle:
    """Choose the exact estimator: double backward, unless one backward pass per task is closer to central differences.

    Double backward is silently wrong if an operation has no second derivative and does not report it, such as those
    marked ``once_differentiable``: their part of g is missing.

    Raises:
        PluginError: If no exact estimator can run.
    """
    found: dict[str, Found] = {}
    unfit: dict[str, str] = {}
    for name in (*EXACT, "difference"):
        settings = {**SHARED, "bilevel.estimator": name, "train.precision": "fp32"}
        try:
            found[name] = run.stepper(settings).find()
        except Exception as error:
            unfit[name] = cause(error)
    able = [name for name in EXACT if name in found]
    if not able:
        raise PluginError(f"No hypergradient can be computed: {'; '.join(f'{n}: {why}' for n, why in unfit.items())}.")
    if len(able) == 1 or agreement(found[able[0]].products, found[able[1]].products).error <= TOLERANCES["fp32"][0]:
        return Oracle(able[0], found[able[0]], unfit)
    off = {name: _distance(found[name], found.get("difference")) for name in able}
    best = min(able, key=lambda name: off[name])
    for name in able:
        if name != best:
            unfit[name] = f"silently wrong here: {off[name]:.1e} from central differences, {best} is {off[best]:.1e}"
    return Oracle(best, found[best], unfit)


def _distance(found: Found, other: Found | None) -> float:
    error = agreement(found.products, other.products).error if other is not None else 0.0
    return error if math.isfinite(error) and bool(found.products.isfinite().all()) else math.inf
