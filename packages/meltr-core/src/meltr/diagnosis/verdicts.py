"""What the measurement says about every auxiliary loss: one verdict and one sentence each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from meltr.diagnosis import curves
from meltr.diagnosis.effects import Estimate, Table, crossed, difference, of_mean
from meltr.diagnosis.experiment import Measured, Names
from meltr.report.statistics import holm, mean

Word = Literal["helps", "hurts", "cannot be told from noise", "costs more than it gives"]

WORDS: tuple[Word, ...] = ("helps", "hurts", "cannot be told from noise", "costs more than it gives")

LEVEL = 0.05
"""Chance that a loss without any effect is called helpful or harmful, over all auxiliary losses together."""

MARGIN = 0.02
"""A benefit below this share of what training brings is not worth a price."""

PRICE = 1.05
"""A step that takes less than this much longer has no price to speak of."""

SLOW = 2 / 3
"""An arm this far behind is not merely slower: it is where the other one was after this share of the steps."""


@dataclass(frozen=True)
class Verdict:
    """What is known about one auxiliary loss.

    Args:
        task: Its name.
        verdict: One of `WORDS`.
        sentence: The verdict with its reasons.
        effect: How much lower the held-out primary loss is with it than without it, beside the primary loss alone.
        p: Of the effect, corrected for the number of losses (Holm).
        company: The same beside all other losses; None with one auxiliary loss.
        interaction: `company` minus `effect`: above 0, the others need it; below 0, they replace it.
        alignment: Cosine of its gradient and the primary one on other examples, mean over branches.
        noise: Standard deviation of g of single batches relative to its mean: how unreliable one batch is.
        conflicts: Cosine of its gradient and that of every other auxiliary loss, on the same batch.
        time: Time of a step with it relative to the primary loss alone.
        memory: Memory of a step, likewise; None if it is not known.
        settled: Whether the branches were long enough for the primary loss alone to stop falling.
    """

    task: str
    verdict: Word
    sentence: str
    effect: Estimate
    p: float | None
    company: Estimate | None
    interaction: Estimate | None
    alignment: Estimate
    noise: float
    conflicts: dict[str, float]
    time: float
    memory: float | None
    settled: bool

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        estimates = {name: getattr(self, name) for name in ("effect", "company", "interaction", "alignment")}
        plain = ("task", "verdict", "sentence", "p", "noise", "conflicts", "time", "memory", "settled")
        own = {name: getattr(self, name) for name in plain}
        return {**own, **{name: each and each.as_dict() for name, each in estimates.items()}}


def judge(found: Measured) -> list[Verdict]:
    """Return a verdict for every auxiliary loss, in the order of the losses."""
    primary, *others = found.losses
    effects = [_effect(found, (primary,), (primary, name)) for name in others]
    corrected = holm([each.p for each in effects])
    return [_verdict(found, name, effect, p) for name, effect, p in zip(others, effects, corrected, strict=True)]


def _effect(found: Measured, without: Names, with_: Names) -> Estimate:
    return crossed(_fall(found, without, with_))


def _fall(found: Measured, without: Names, with_: Names) -> Table:
    return difference(curves.best(found.scores[without]), curves.best(found.scores[with_]))


def _verdict(found: Measured, name: str, effect: Estimate, p: float | None) -> Verdict:
    primary, *others = found.losses
    alone, added = (primary,), (primary, name)
    company = interaction = None
    if len(others) > 1:
        rest = tuple(each for each in found.losses if each != name)
        inside = _fall(found, rest, found.losses)
        company, interaction = crossed(inside), crossed(difference(inside, _fall(found, alone, added)))
    ratios = [mine / base for mine, base in zip(found.seconds[added], found.seconds[alone], strict=True)]
    memory, base = found.mebibytes[added], found.mebibytes[alone]
    price = median(ratios)
    lines = _Lines(curves.curve(found.scores[alone]), curves.curve(found.scores[added]), found.marks)
    word, reason = _word(effect, p, lines, price)
    place = 1 + found.losses.index(name)
    alignment, noise = _alignment(found, place)
    scale = abs(lines.alone[-1])
    return Verdict(
        name,
        word,
        f"{name} {word}: {reason}{_more(name, found, interaction, scale)}",
        effect,
        p,
        company,
        interaction,
        alignment,
        noise,
        {each: _cosine(found, place, 1 + found.losses.index(each)) for each in others if each != name},
        price,
        memory / base if memory and base else None,
        curves.settled(lines.alone),
    )


@dataclass(frozen=True)
class _Lines:
    """The curves of the primary loss alone and of the primary loss with one other."""

    alone: list[float]
    added: list[float]
    marks: Sequence[int]


def _word(effect: Estimate, p: float | None, lines: _Lines, price: float) -> tuple[Word, str]:
    """Return the verdict and its reason."""
    size = _size(effect, lines.alone[-1])
    steps = lines.marks[-1]
    if p is not None and p < LEVEL and effect.mean > 0:
        sooner = curves.reached(lines.added, lines.marks, lines.alone[-1])
        if curves.settled(lines.alone) or sooner is None or sooner * price < steps:
            return "helps", f"the primary loss on held-out examples is lower with it, {size}{_early(lines)}."
        return "costs more than it gives", (
            f"it needs {sooner:.0f} steps to get where the primary loss alone gets in {steps}, and a step takes "
            f"{price:.2f} times as long."
        )
    if p is not None and p < LEVEL:
        where = curves.reached(lines.alone, lines.marks, lines.added[-1])
        if where is None or where < SLOW * steps or curves.settled(lines.added):
            return "hurts", f"the primary loss on held-out examples is higher with it, {size}{_early(lines)}."
        return "cannot be told from noise", (
            f"it slows training down so far, {size}, but both are still falling after {steps} steps: the branches are "
            "too short to tell whether it hurts."
        )
    margin = MARGIN * curves.fall(lines.alone)
    if effect.high is not None and effect.high < margin and price >= PRICE and curves.settled(lines.alone):
        return "costs more than it gives", (
            f"a step takes {price:.2f} times as long, and a benefit worth it is ruled out, {size}{_early(lines)}."
        )
    return "cannot be told from noise", f"{size}{_early(lines)}. More branches narrow that down."


def _size(effect: Estimate, score: float) -> str:
    """Return the effect as text, relative to the primary loss."""
    if effect.low is None or effect.high is None or score == 0:
        return f"by {effect.mean:+.3g}"
    mean_, low, high = (100 * -value / abs(score) for value in (effect.mean, effect.high, effect.low))
    return f"{mean_:+.1f} % (95 %: {low:+.1f} to {high:+.1f} %)"


def _early(lines: _Lines) -> str:
    return (
        ""
        if curves.settled(lines.alone)
        else f", though the primary loss is still falling after {lines.marks[-1]} steps"
    )


def _more(name: str, found: Measured, interaction: Estimate | None, scale: float) -> str:
    """Return a sentence about the other losses if they change what this one does."""
    if interaction is None or interaction.p is None or interaction.p >= LEVEL:
        return ""
    others = ", ".join(each for each in found.losses[1:] if each != name)
    size = f"{100 * abs(interaction.mean) / scale:.1f} %" if scale else f"{abs(interaction.mean):.3g}"
    way = "more" if interaction.mean > 0 else "less"
    return f" Beside {others} it brings {size} {way}."


def _alignment(found: Measured, place: int) -> tuple[Estimate, float]:
    """Return the cosine of v and a row of J, and the noise of g: its deviation over single batches over its mean."""
    cosines, products = list[float](), list[float]()
    for branch in found.vectors:
        cosines.append(mean([_normed(table, 0, place) for table in branch]))
        products += [table[0][place] for table in branch]
    centre = mean(products)
    spread = math.sqrt(mean([(value - centre) ** 2 for value in products]))
    return of_mean(cosines), spread / abs(centre) if centre else math.inf


def _cosine(found: Measured, one: int, other: int) -> float:
    return mean([_normed(table, one, other) for branch in found.vectors for table in branch])


def _normed(table: Table, i: int, j: int) -> float:
    size = math.sqrt(table[i][i] * table[j][j])
    return table[i][j] / size if size else 0.0
