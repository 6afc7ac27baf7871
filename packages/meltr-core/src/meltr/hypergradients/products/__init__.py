"""Five ways to compute g = J q, the Jacobian-vector product of the T+1 losses; one a file."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from meltr.errors import UserError, did_you_mean
from meltr.hypergradients.problem import OuterProblem
from meltr.hypergradients.products.difference import CentralDifference
from meltr.hypergradients.products.double_backward import double_backward
from meltr.hypergradients.products.forward import forward_mode
from meltr.hypergradients.products.one_sided import OneSidedDifference
from meltr.hypergradients.products.per_task import per_task
from meltr.hypergradients.vectors import Direction

Estimator = Callable[[OuterProblem, Direction], Tensor]
"""Returns g for a direction q, in whose memory it may leave anything."""


def estimator(name: str) -> Estimator:
    """Return a new estimator called `name`.

    Raises:
        UserError: If there is none.
    """
    makers: dict[str, Callable[[], Estimator]] = {
        "forward": lambda: forward_mode,
        "one_sided": lambda: OneSidedDifference(overwrite=True),
        "difference": lambda: CentralDifference(overwrite=True),
        "per_task": lambda: per_task,
        "double_backward": lambda: double_backward,
    }
    if name not in makers:
        raise UserError(f"Unknown estimator {name!r}.", did_you_mean(name, [*makers, "auto"]))
    return makers[name]()
