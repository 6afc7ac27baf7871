"""The base class of schemes: values that choose the direction q. All schemes share what follows."""

from __future__ import annotations

import abc
import math
from typing import ClassVar

from meltr.autograd.vectors import Direction
from meltr.hypergradients.hessian import HessianKind
from meltr.hypergradients.passes import Passes
from meltr.hypergradients.problem import OuterProblem


class Scheme(abc.ABC):
    """Chooses the direction q of grad_phi (a(phi) . J q). Write a scheme as a frozen dataclass; it has no state.

    Attributes:
        name: The name used with ``--set scheme=``.
        takes_inner_step: True if q is the gradient of an inner step on the primary objective; then `direction` is not
            called.
    """

    name: ClassVar[str]
    takes_inner_step: ClassVar[bool] = False

    @abc.abstractmethod
    def direction(self, problem: OuterProblem) -> Direction:
        """Return q, one tensor per parameter of the problem; None where it is zero."""

    @property
    def needs_second_derivative(self) -> bool:
        """True if the losses are differentiated twice: attention then runs on the math kernel."""
        return False

    def most(self) -> Passes:
        """Return an upper bound of what `direction` costs, see ``bilevel.budget``."""
        return Passes(forward=20, backward=20)

    @property
    def independent_batches(self) -> int:
        """Number of batches, besides the current one, that an outer step needs (`OuterProblem.others`)."""
        return 0


class HessianScheme(Scheme):
    """A scheme that takes Hessian-vector products.

    Attributes:
        hessian: How they are computed (see `meltr.hypergradients.hessian.hessian_product`).
    """

    hessian: HessianKind

    @property
    def needs_second_derivative(self) -> bool:
        """True if Hessian-vector products are computed by double backward."""
        return self.hessian == "double_backward"


def check_terms(terms: int) -> None:
    """Raise ValueError if the number of terms or iterations is negative."""
    if terms < 0:
        raise ValueError(f"terms must be at least 0, got {terms}")


def check_step(step: float) -> None:
    """Raise ValueError if a step size is not a positive number."""
    if not 0 < step < math.inf:
        raise ValueError(f"step must be a positive number, got {step}")


def check_hessian(hessian: str) -> None:
    """Raise ValueError if the way to compute Hessian-vector products is unknown."""
    if hessian not in ("difference", "double_backward"):
        raise ValueError(f"hessian must be 'difference' or 'double_backward', got {hessian!r}")
