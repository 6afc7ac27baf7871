"""The schemes by name. A scheme is one function that returns the direction q; everything after it is shared."""

from __future__ import annotations

from collections.abc import Callable

from meltr.errors import UserError, did_you_mean
from meltr.hypergradients.aid_fp_lite import aid_fp_lite
from meltr.hypergradients.problem import Direction, OuterProblem

Scheme = Callable[[OuterProblem], Direction]

SCHEMES: dict[str, Scheme] = {"aid-fp-lite": aid_fp_lite}


def scheme(name: str) -> Scheme:
    """Return the scheme called `name`.

    Raises:
        UserError: If there is none.
    """
    if name not in SCHEMES:
        raise UserError(f"Unknown scheme {name!r}.", did_you_mean(name, SCHEMES))
    return SCHEMES[name]
