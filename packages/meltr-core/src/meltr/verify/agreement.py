"""Agreement of two hypergradients, and the reason if one could not be computed."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from meltr.errors import MeltrError, NoForwardModeError

_FORWARD_AD = re.compile(r"forward AD with (\S+) that does not support")
_DERIVATIVE = re.compile(r"derivative for (\S+) is not implemented")


@dataclass(frozen=True)
class Agreement:
    """Agreement of a vector with a reference that is taken as exact.

    Args:
        error: Norm of the difference over the norm of the reference; the norm itself if the reference is zero.
        cosine: Cosine of the angle between them; NaN if one is zero.
        signs: Number of entries with the same sign.
        size: Number of entries.
    """

    error: float
    cosine: float
    signs: int
    size: int


def agreement(found: Tensor, exact: Tensor) -> Agreement:
    """Compare two vectors in float64."""
    found, exact = found.double().flatten(), exact.double().flatten()
    length = float(exact.norm())
    error = float((found - exact).norm()) / (length if length > 0 else 1.0)
    scale = float(found.norm()) * length
    cosine = float(torch.dot(found, exact)) / scale if scale > 0 else float("nan")
    return Agreement(error, cosine, int((torch.sign(found) == torch.sign(exact)).sum()), found.numel())


def cause(error: Exception) -> str:
    """Return in one line why a computation failed; the operation, if torch names one."""
    if isinstance(error, NoForwardModeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    text = str(error).strip()
    if isinstance(error, MeltrError):
        return error.message.splitlines()[0].rstrip(".")
    for pattern, words in ((_FORWARD_AD, "no forward mode"), (_DERIVATIVE, "no second derivative")):
        match = pattern.search(text)
        if match:
            return f"{words}: {match.group(1) if '::' in match.group(1) else f'aten::{match.group(1)}'}"
    first = text.splitlines()[0] if text else ""
    named = type(error) in (RuntimeError, NotImplementedError)
    return first if named and first else f"{type(error).__name__}: {first}".rstrip(": ")
