"""Ways to weigh losses that are compared on the beds. Rivals have the settings of their papers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from meltr.combiners.base import Combiner
from meltr.combiners.cosine import CosineSimilarity
from meltr.combiners.dwa import DynamicWeightAverage
from meltr.combiners.famo import Famo
from meltr.combiners.fixed import FixedCombiner
from meltr.combiners.gradnorm import GradNorm
from meltr.combiners.linear import LinearCombiner, auto_lambda
from meltr.combiners.loss_transformer import LossTransformer
from meltr.combiners.torchjd_ import from_options as torchjd
from meltr.combiners.uncertainty import UncertaintyCombiner
from meltr.errors import UserError, did_you_mean
from meltr.helps.fork_merge import ForkMerge
from meltr.helps.lanes import Search, common, each_alone, one_helper, primary_or_sum
from meltr.helps.race import Race, Round
from meltr.hypergradients.schemes import ITD, AIDFPLite, Scheme

Build = Callable[[Sequence[str]], Combiner]


@dataclass(frozen=True)
class Method:
    """One way to weigh losses.

    Args:
        name: What the user writes after ``--method``.
        build: Makes the combiner of one seed from the names of the losses.
        outer_lr: Learning rate of Adam for the combiner; None: the combiner is not trained.
        outer_weight_decay: Of the same.
        every: K, inner steps between two outer steps.
        budget: Share of the operations that outer steps may take, with `every` the smallest K; None: K is fixed.
        gamma: Weight of the regulariser (eq. 6).
        scheme: Which direction q.
        outer_batch: What the outer step's primary loss is taken on: the current batch, or the validation examples.
        trunk: The outer step sees the layers that tasks share, not the heads.
        side_by_side: All seeds train in one; otherwise one after another.
        order: Another number gives another order of examples.
        search: Look ahead with several fixed task weights, instead of `build`.
    """

    name: str
    build: Build = field(repr=False)
    outer_lr: float | None = None
    outer_weight_decay: float = 0.0
    every: int = 3
    budget: float | None = None
    gamma: float = 0.0
    scheme: Scheme = field(default_factory=AIDFPLite)
    outer_batch: Literal["current", "held_out"] = "current"
    trunk: bool = False
    side_by_side: bool = True
    order: int = 0
    search: Search | None = None


def fixed(auxiliary: float) -> Build:
    """Return a builder of fixed weights: 1 for the primary loss, the given one for every other."""
    return lambda names: FixedCombiner(names, [1.0] + [auxiliary] * (len(names) - 1))


def _of_torchjd(method: str) -> Build:
    options: dict[str, Any] = {"method": method, "method_options": {}}
    return lambda names: torchjd(names, **options)


def _transformer(width: int) -> Build:
    return lambda names: LossTransformer(names, width=width, heads=8, feedforward=width, scale_hidden=width // 2)


def _shares(names: Sequence[str]) -> LossTransformer:
    return LossTransformer(names, width=64, heads=8, feedforward=64, scale_hidden=32, readout="shares")


GRID = (0.1, 0.3, 1.0, 3.0)
"""Fixed weights of the auxiliary losses: their best shows how much there is to gain.

They are races of one candidate: the same training in a plain loop, which takes a third of the time of many seeds.
"""

_ALL = (
    Method("primary", fixed(0.0)),
    Method("sum", fixed(1.0)),
    *(Method(f"fixed {weight:g}", fixed(weight), search=Race(common((weight,)), [])) for weight in GRID if weight != 1),
    Method("sum, other order", fixed(1.0), order=1),
    Method("race, two, 1/4", fixed(1.0), search=Race(primary_or_sum, [Round(1 / 4)])),
    Method("race, two, 1/3", fixed(1.0), search=Race(primary_or_sum, [Round(1 / 3)])),
    Method("race", fixed(1.0), search=Race(each_alone((1.0, 3.0)), [Round(0.25, keep=2), Round(0.5)])),
    Method("one helper", fixed(1.0), search=Race(one_helper((1.0, 3.0)), [Round(0.25, keep=2), Round(0.5)])),
    Method("forkmerge", fixed(1.0), search=ForkMerge(primary_or_sum, merges=3)),
    Method("forkmerge, three", fixed(1.0), search=ForkMerge(common((0.0, 1.0, 3.0)), merges=3)),
    Method("meltr", _transformer(64), 1e-4, gamma=0.1),
    Method("meltr, held out", _transformer(64), 1e-3, outer_batch="held_out", trunk=True),
    Method("meltr, shares", _shares, 1e-3, outer_batch="held_out", trunk=True),
    Method("linear", LinearCombiner, 1e-4),
    Method("linear, held out", LinearCombiner, 3e-2, outer_batch="held_out", trunk=True),
    Method(
        "auto-lambda", lambda n: auto_lambda(n, start_weight=0.1), 1e-4, every=1, scheme=ITD(), outer_batch="held_out"
    ),
    Method("uncertainty", UncertaintyCombiner, 1e-3),
    Method("dwa", DynamicWeightAverage),
    Method("gradnorm", GradNorm, 0.025),
    Method("famo", Famo, 0.025, outer_weight_decay=1e-3),
    Method("cosine", CosineSimilarity, side_by_side=False),
    Method("pcgrad", _of_torchjd("PCGrad"), side_by_side=False),
    Method("upgrad", _of_torchjd("UPGrad"), side_by_side=False),
)

METHODS = {method.name: method for method in _ALL}
"""Every method by name. 'sum, other order' equals 'sum' by construction: their difference is noise."""


def method_named(name: str) -> Method:
    """Return a method.

    Raises:
        UserError: If the name is unknown.
    """
    if name not in METHODS:
        raise UserError(f"unknown method {name!r}", did_you_mean(name, list(METHODS)))
    return METHODS[name]


def outer_optimizer(method: Method, combiner: Combiner) -> torch.optim.Optimizer | None:
    """Return the optimiser of the combiner's parameters; None if the method trains none."""
    if method.outer_lr is None:
        return None
    return torch.optim.Adam(combiner.parameters(), method.outer_lr, weight_decay=method.outer_weight_decay)
