"""Settings of the built-in schemes and estimators (``scheme_options.*``, ``estimator_options.*``). Imports no torch.

Names and defaults are the same as those of the classes.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from meltr.specs import Info


class AIDFPOptions(Info):
    """Settings of the scheme ``aid-fp``.

    Args:
        terms: Hessian-vector products of the series.
        step: Step size of the series.
        scaled: Multiply the series by its step size, so that it converges to the inverse Hessian. AuxiLearn's code does
            not.
        hessian: How Hessian-vector products are computed: ``difference`` of gradients, or ``double_backward``.
    """

    terms: int = Field(3, ge=0)
    step: float = Field(1e-4, gt=0)
    scaled: bool = True
    hessian: Literal["difference", "double_backward"] = "difference"


class AIDCGOptions(Info):
    """Settings of the scheme ``aid-cg``.

    Args:
        terms: Number of iterations.
        damping: Added to the Hessian's diagonal.
        hessian: How Hessian-vector products are computed: ``difference`` of gradients, or ``double_backward``.
    """

    terms: int = Field(3, ge=0)
    damping: float = Field(0.0, ge=0)
    hessian: Literal["difference", "double_backward"] = "difference"


class StocBiOOptions(Info):
    """Settings of the scheme ``stocbio``.

    Args:
        terms: Number of Hessian-vector products in the series, each on an independent batch.
        step: Step size of the series.
        hessian: How Hessian-vector products are computed: ``difference`` of gradients, or ``double_backward``.
    """

    terms: int = Field(3, ge=0)
    step: float = Field(0.5, gt=0)
    hessian: Literal["difference", "double_backward"] = "difference"


class ITDOptions(Info):
    """Settings of the scheme ``itd``.

    Args:
        step: Step size of the look-ahead step; none: the learning rate of each parameter.
    """

    step: float | None = Field(None, gt=0)


class OneSidedDifferenceOptions(Info):
    """Settings of the estimator ``one_sided``.

    Args:
        recheck: Outer steps between two checks against one backward pass per task.
    """

    recheck: int = Field(100, ge=1)


class CentralDifferenceOptions(Info):
    """Settings of the estimator ``difference``.

    Args:
        recheck: Outer steps between two checks of the step size.
    """

    recheck: int = Field(50, ge=1)
