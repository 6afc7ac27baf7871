r"""Gradient similarity (Du et al. 2018): an auxiliary loss counts as far as its gradient agrees with the primary one's.

With g_t the gradient of loss t over the parameters that the primary loss reaches, and cos_t the cosine of g_0 and g_t:

    u = g_0 + sum_t a_t g_t,     a_t = max(0, cos_t)        weighted (the paper's algorithm 1)
                                 a_t = 1 if cos_t >= 0, else 0    unweighted

Parameters that only auxiliary losses reach, such as their heads, get the plain sum of their gradients, as in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from meltr.combiners.base import GradientCombiner, Rows, as_names


class CosineSimilarity(GradientCombiner):
    """The inner gradient with every auxiliary gradient weighted by its cosine with the primary one; nothing is trained.

    Args:
        losses: Names of the losses, primary first, or how many there are.
        weighted: True: the weight is the cosine, or 0 if it is negative; False: 1, or 0 if the cosine is negative.
    """

    def __init__(self, losses: int | Sequence[str], *, weighted: bool = True) -> None:
        super().__init__(as_names(losses))
        self.weighted = weighted

    def forward(self, losses: Tensor) -> Tensor:
        """Map losses of shape (T+1,) to their sum of shape (); the weights depend on gradients and not on it."""
        return losses.sum()

    def settings(self) -> dict[str, Any]:
        """Return whether the cosine is the weight."""
        return {"weighted": self.weighted}

    @torch.no_grad()
    def from_gradients(self, losses: Tensor, rows: Rows) -> tuple[list[Tensor | None], Tensor]:
        """Return the direction u, one entry per parameter, and the weights a, shape (T+1,).

        If a gradient is not finite, u is the plain sum, which is not finite either.

        Args:
            losses: l, shape (T+1,).
            rows: The gradient of every task, primary first.
        """
        a = self._weights(rows, losses)
        found: list[Tensor | None] = []
        for column in zip(*rows, strict=True):
            shared = column[0] is not None
            parts = [part * a[task] if shared else part for task, part in enumerate(column) if part is not None]
            found.append(torch.stack(parts).sum(0) if parts else None)
        return found, a

    def _weights(self, rows: Rows, losses: Tensor) -> Tensor:
        products = losses.new_zeros(len(rows))
        squares = losses.new_zeros(len(rows))
        for column in zip(*rows, strict=True):
            main = column[0]
            if main is None:
                continue
            for task, part in enumerate(column):
                if part is not None:
                    products[task] += (main * part).sum().to(losses)
                    squares[task] += part.square().sum().to(losses)
        if not bool(squares.isfinite().all()):
            return torch.ones_like(losses)
        cosines = torch.nan_to_num(products / (squares[0] * squares).sqrt(), nan=0.0)
        a = cosines.clamp(min=0) if self.weighted else (cosines >= 0).to(losses)
        a[0] = 1.0
        return a


def from_options(losses: Sequence[str], *, weighted: bool) -> CosineSimilarity:
    """Build the combiner ``cosine``."""
    return CosineSimilarity(losses, weighted=weighted)
