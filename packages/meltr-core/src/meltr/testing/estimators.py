"""The gradient alignment: every estimator that works on the model agrees with an exact one."""

from __future__ import annotations

import torch

from meltr.testing.case import Case
from meltr.verify.agreement import agreement, cause
from meltr.verify.fixed_run import FixedRun, Found
from meltr.verify.oracle import DIFFERENCES, EXACT
from meltr.verify.variants import estimators
from meltr.verify.verification import allowed_error


class Estimators(Case):
    """What ``meltr verify`` checks first, on one outer step of each kind."""

    def test_all_estimators_agree(self, fixed: FixedRun) -> None:
        """Those that run are as close to an exact one as ``meltr verify`` asks for, and leave the weights as they were.

        An estimator that the model does not support (a kernel without forward mode) is not a failure, but an exact one
        and ``auto`` must run. If the exact ones differ, ``meltr verify`` tells which of them is wrong.
        """
        assert len(fixed.context.losses) > 1, "there is nothing to combine: the data support a single loss"
        found: dict[str, Found] = {}
        unable: dict[str, str] = {}
        for name in (*estimators(fixed.registry), "auto"):
            try:
                found[name] = fixed.stepper({"bilevel.outer_batch": "shared", "bilevel.estimator": name}).find()
            except Exception as error:
                unable[name] = cause(error)
        fixed.restore()
        exact = next((name for name in reversed(EXACT) if name in found), None)
        assert exact is not None, f"no exact estimator can run: {unable}"
        assert "auto" in found, f"auto cannot run: {unable['auto']}"
        for name, result in found.items():
            assert result.weights_kept, f"{name}: the outer step changes weights"
            assert bool(result.products.isfinite().all()), f"{name}: g is {result.products.tolist()}"
            assert result.gradient is not None, f"{name}: the outer step was skipped"
            assert bool(torch.isfinite(result.gradient).all()), f"{name}: the combiner's gradient is not finite"
            off = agreement(result.products, found[exact].products).error
            allowed = allowed_error(fixed.spec.train.precision, differences=result.estimator in DIFFERENCES)
            assert off <= allowed, f"g by {name} is off by {off:.1e} from {exact} (allowed: {allowed:.0e})"
