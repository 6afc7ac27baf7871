"""Figure 5: how much of each task weight comes from the scale embedding and how much from the task embedding."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from meltr.combiners.base import sensitivities
from meltr.combiners.loss_transformer import LossTransformer
from meltr.errors import UserError
from meltr.report import numbers, style
from meltr.report.numbers import Drawn
from meltr.report.trained import Floats, Trained

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST = 60
"""Logged losses at which the weights are computed."""


@dataclass(frozen=True)
class Parts:
    """Task weights by what their tokens know, each (N, T+1).

    Args:
        neither: All tokens are equal: the mean loss, the mean task embedding. All tasks have the same weight.
        scale: Every token has the scale embedding of its own loss, and the mean task embedding.
        task: Every token has its own task embedding, and the scale embedding of the mean loss.
        both: The combiner as it was trained.
    """

    neither: Floats
    scale: Floats
    task: Floats
    both: Floats

    @property
    def from_scale(self) -> Floats:
        """What the scale embedding adds to a weight, (N, T+1): its Shapley value in the game of the two embeddings."""
        return ((self.scale - self.neither) + (self.both - self.task)) / 2

    @property
    def from_task(self) -> Floats:
        """What the task embedding adds; `neither` + `from_scale` + `from_task` is `both`."""
        return ((self.task - self.neither) + (self.both - self.scale)) / 2


def embedding_parts(combiner: LossTransformer, losses: Floats) -> Parts:
    """Return the task weights of a loss transformer by embedding (eqs. 4 and 5), at each row of `losses`, (N, T+1)."""
    alike = copy.deepcopy(combiner)
    if "task" in combiner.embedding:
        with torch.no_grad():
            alike.task_embedding.weight.copy_(combiner.task_embedding.weight.mean(0).expand(len(combiner.names), -1))
    own = torch.from_numpy(losses).float()
    same = own.mean(1, keepdim=True).expand_as(own)

    def weights(module: LossTransformer, rows: torch.Tensor) -> Floats:
        return torch.stack([sensitivities(module, row)[1] for row in rows]).double().numpy()

    return Parts(weights(alike, same), weights(alike, own), weights(combiner, same), weights(combiner, own))


def embedding_figure(trained: Trained) -> Drawn:
    """Draw each task weight with one embedding alone and with both, and what each embedding adds (Figure 5).

    Marks are medians over the losses that the run has logged; whiskers hold 80 % of them.

    Returns:
        The figure, and its numbers as CSV: loss, what, median, low, high.

    Raises:
        UserError: If the combiner is no loss transformer.
    """
    combiner = trained.combiner
    if not isinstance(combiner, LossTransformer):
        raise UserError(
            f"{trained.name} has the combiner {type(combiner).__name__}, which has no embeddings.",
            "Figure 5 needs a run of the loss transformer: --combiner meltr.",
        )
    places = np.unique(np.linspace(0, len(trained.logged) - 1, _MOST).astype(np.int64))
    parts = embedding_parts(combiner, trained.logged[places])
    figure, (left, right) = style.panels(2, height=1.2 + 0.45 * len(trained.names))
    rows: list[tuple[object, ...]] = []
    for axis, shown in ((left, _WEIGHTS), (right, _ADDED)):
        for place, (what, field, marker, filled) in enumerate(shown):
            spread = np.percentile(getattr(parts, field), (10, 50, 90), axis=0)
            offset = 0.24 * (place - (len(shown) - 1) / 2)
            _marks(axis, spread, offset, marker=marker, filled=filled)
            rows += [(name, what, *map(float, spread[[1, 0, 2], i])) for i, name in enumerate(trained.names)]
        axis.set_yticks(
            range(len(trained.names)), trained.names if axis is left or style.is_narrow() else [""] * len(trained.names)
        )
        axis.set_ylim(len(trained.names) - 0.5, -0.5)
        axis.grid(visible=False, axis="y")
    left.set(title="Task weight", xlabel="task weight $a_t$")
    right.set(title="What an embedding adds", xlabel="change of the task weight")
    left.axvline(float(np.median(parts.neither)), color=style.NEUTRAL, linewidth=0.8, linestyle=":", zorder=1)
    right.axvline(0, color=style.NEUTRAL, linewidth=0.8, zorder=1)
    figure.legend(handles=_legend(), loc="outside lower center", ncols=2 if style.is_narrow() else 4)
    style.caption(figure, trained.name, "over the logged losses: median, and 80 % of them")
    return figure, numbers.to_csv(("loss", "what", "median", "low", "high"), rows)


_WEIGHTS = (
    ("scale embedding alone", "scale", "^", False),
    ("task embedding alone", "task", "s", False),
    ("both", "both", "o", True),
)
_ADDED = (("added by scale", "from_scale", "^", False), ("added by task", "from_task", "s", False))


def _marks(axis: Axes, spread: Floats, offset: float, *, marker: str, filled: bool) -> None:
    for index, (low, middle, high) in enumerate(spread.T):
        color = style.look(index)["color"]
        axis.plot([low, high], [index + offset] * 2, color=color, linewidth=1.5, alpha=0.6)
        face = color if filled else "none"
        axis.plot(middle, index + offset, color=color, marker=marker, markersize=7, markerfacecolor=face)


def _legend() -> list[object]:
    from matplotlib.lines import Line2D

    looks = [
        ("scale embedding", "^", "none"),
        ("task embedding", "s", "none"),
        ("both", "o", style.NEUTRAL),
    ]
    marks = [
        Line2D([], [], color=style.NEUTRAL, marker=marker, linestyle="", markerfacecolor=face, label=text)
        for text, marker, face in looks
    ]
    return [*marks, Line2D([], [], color=style.NEUTRAL, linestyle=":", linewidth=0.8, label="neither (left)")]
