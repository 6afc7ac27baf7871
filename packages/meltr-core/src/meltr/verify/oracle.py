"""The estimator that is taken for exact, chosen by a third one that shares nothing with the others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from meltr.errors import PluginError
from meltr.verify.agreement import agreement, cause
from meltr.verify.fixed_run import FixedRun, Found
from meltr.verify.variants import ORACLE

TOLERANCES = {"fp32": (1e-3, 1e-2)}
"""Precision -> relative error allowed: of exact estimators, of `DIFFERENCES`."""

DIFFERENCES = ("one_sided", "difference")
"""Estimators that go a finite step."""

EXACT = (ORACLE, "per_task")
"""Estimators that are exact wherever they work; one of them is the oracle."""

SHARED = {"bilevel.outer_batch": "shared"}


@dataclass(frozen=True)
class Oracle:
    """The estimator taken for exact, what it found in full precision, and why others that should be exact are not.

    Args:
        name: Of the estimator.
        found: Its g.
        unfit: Exact estimators that cannot be trusted or cannot run here -> why.
    """

    name: str
    found: Found
    unfit: Mapping[str, str]


def choose_oracle(problem: FixedRun) -> Oracle:
    """Choose the exact estimator: double backward, unless one backward per task is nearer to central differences.

    Double backward is silently wrong where an operation has no second derivative and does not say so, as those marked
    ``once_differentiable`` do: their part of g is left out.

    Raises:
        PluginError: If neither can run.
    """
    found: dict[str, Found] = {}
    unfit: dict[str, str] = {}
    for name in (*EXACT, "difference"):
        settings = {**SHARED, "bilevel.estimator": name, "train.precision": "fp32"}
        try:
            found[name] = problem.stepper(settings).find()
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
