"""The schemes by name. A scheme is one function that returns the direction q; everything after it is shared."""

from __future__ import annotations

from collections.abc import Callable

from meltr.errors import UserError, did_you_mean
from meltr.hypergradients.aid_cg import aid_cg
from meltr.hypergradients.aid_fp import aid_fp
from meltr.hypergradients.aid_fp_lite import aid_fp_lite
from meltr.hypergradients.itd import itd
from meltr.hypergradients.no_direction import no_direction
from meltr.hypergradients.problem import OuterProblem
from meltr.hypergradients.sama import sama
from meltr.hypergradients.stocbio import stocbio
from meltr.hypergradients.vectors import Direction

Scheme = Callable[[OuterProblem], Direction]

SCHEMES: dict[str, Scheme] = {
    "aid-fp-lite": aid_fp_lite,
    "aid-fp": aid_fp,
    "aid-cg": aid_cg,
    "stocbio": stocbio,
    "itd": itd,
    "sama": sama,
    "none": no_direction,
}


def scheme(name: str) -> Scheme:
    """Return the scheme called `name`.

    Raises:
        UserError: If there is none.
    """
    if name not in SCHEMES:
        raise UserError(f"Unknown scheme {name!r}.", did_you_mean(name, SCHEMES))
    return SCHEMES[name]
