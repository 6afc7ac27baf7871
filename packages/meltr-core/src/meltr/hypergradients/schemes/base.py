"""What a scheme is: a value that chooses the direction q. Everything after q is shared by all schemes."""

from __future__ import annotations

import abc
import math
from typing import ClassVar

from meltr.autograd.vectors import Direction
from meltr.hypergradients.hessian import HessianKind
from meltr.hypergradients.problem import OuterProblem


class Scheme(abc.ABC):
    """Chooses the direction q of grad_phi (a(phi) . J q). Write one as a frozen dataclass: it keeps no state.

    Attributes:
        name: What the user writes after ``--set scheme=``.
    """

    name: ClassVar[str]

    @abc.abstractmethod
    def direction(self, problem: OuterProblem) -> Direction:
        """Return q, one tensor a parameter of the problem; None where it is zero."""

    @property
    def needs_second_derivative(self) -> bool:
        """True if the losses are differentiated twice: attention then runs on the math kernel."""
        return False

    @property
    def independent_batches(self) -> int:
        """How many batches besides the current one an outer step draws (`OuterProblem.others`)."""
        return 0


class HessianScheme(Scheme):
    """A scheme that takes Hessian-vector products.

    Attributes:
        hessian: How they are taken (see `meltr.hypergradients.hessian.hessian_product`).
    """

    hessian: HessianKind

    @property
    def needs_second_derivative(self) -> bool:
        """True if Hessian products are taken by double backward."""
        return self.hessian == "double_backward"


def check_terms(terms: int) -> None:
    """Check the number of terms or iterations; ValueError if it is negative."""
    if terms < 0:
        raise ValueError(f"terms must be at least 0, got {terms}")


def check_step(step: float) -> None:
    """Check a step size; ValueError if it is not a positive number."""
    if not 0 < step < math.inf:
        raise ValueError(f"step must be a positive number, got {step}")


def check_hessian(hessian: str) -> None:
    """Check the way Hessian products are taken; ValueError if it is unknown."""
    if hessian not in ("difference", "double_backward"):
        raise ValueError(f"hessian must be 'difference' or 'double_backward', got {hessian!r}")
