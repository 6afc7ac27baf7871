"""The first words of a report: the question, and its answer with significance and cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from meltr.report import statistics
from meltr.report.compare import Comparison, Row

LEVEL = 0.05
"""A difference counts as significant below this p value, after Holm's correction."""


@dataclass(frozen=True)
class Answer:
    """The answer of a report.

    Args:
        question: What the reader wants to know.
        headline: The answer in one sentence.
        sentences: What it rests on: significance, cost, what would settle it.
        best: Label of the row with the best mean; None if the direction of the metric is not known.
    """

    question: str
    headline: str
    sentences: tuple[str, ...]
    best: str | None


@dataclass(frozen=True)
class Lead:
    """The best row minus another one, over common seeds.

    Args:
        row: The other row.
        difference: Mean difference, above 0 where the best row's number is higher.
        pairs: Number of common seeds.
        p: Two-sided p value of the paired t-test, Holm-corrected over all other rows; None if it is undefined.
    """

    row: Row
    difference: float
    pairs: int
    p: float | None

    @property
    def significant(self) -> bool:
        """True if p is below `LEVEL`."""
        return self.p is not None and self.p < LEVEL


def leads(comparison: Comparison, best: Row) -> tuple[Lead, ...]:
    """Return the best row against every other row, in the order of the comparison."""
    others = [row for row in comparison.rows if row is not best]
    shared = [[best.values[seed] - row.values[seed] for seed in best.values if seed in row.values] for row in others]
    corrected = statistics.holm([statistics.paired_t(values) for values in shared])
    return tuple(
        Lead(row, statistics.mean(values) if values else best.mean - row.mean, len(values), p)
        for row, values, p in zip(others, shared, corrected, strict=True)
    )


def best_row(comparison: Comparison) -> Row | None:
    """Return the row with the best mean; the first of equal ones; None if the direction is not known."""
    if comparison.higher_is_better is None:
        return None
    sign = 1 if comparison.higher_is_better else -1
    return max(comparison.rows, key=lambda row: sign * row.mean)


def answer(comparison: Comparison) -> Answer:
    """Return the answer to the question which row is best."""
    what = f"{comparison.split} {comparison.metric}"
    if len(comparison.rows) == 1:
        return _of_one(comparison, what)
    best = best_row(comparison)
    question = f"Which of {len(comparison.rows)} configurations has the best {what} on {comparison.dataset}?"
    if best is None:
        headline = f"The runs do not say whether a higher {comparison.metric} is better, so none is called the best."
        return Answer(question, headline, (), None)
    found = leads(comparison, best)
    beaten = [lead for lead in found if lead.significant]
    closest = min(found, key=lambda lead: abs(lead.difference))
    value = _number(best.mean, comparison)
    if closest.difference == 0 and not beaten:
        headline = f"{best.label} and {closest.row.label} have the same mean, {value}: there is no winner."
    elif len(beaten) == len(found):
        headline = f"{best.label} wins: {what} {value}, better than every other configuration beyond chance."
    elif all(lead.p is None for lead in found) and all(lead.pairs < 2 for lead in found):
        headline = f"{best.label} has the best number, {value}, but one seed cannot tell a difference from chance."
    elif beaten:
        names = ", ".join(lead.row.label for lead in beaten)
        headline = (
            f"{best.label} has the best mean, {value}. It beats {names} beyond chance; "
            f"against {closest.row.label} it cannot be told from chance."
        )
    else:
        headline = f"No clear winner: {best.label} has the best mean, {value}, but its lead can be chance."
    sentences = [_sentence(best, lead, comparison) for lead in found]
    return Answer(question, headline, (*sentences, *_cost(comparison, best), *_next(found)), best.label)


def _of_one(comparison: Comparison, what: str) -> Answer:
    (row,) = comparison.rows
    spread = "" if row.std is None else f" ± {_number(row.std, comparison)} over {len(row.values)} seeds"
    question = f"What does the combiner {row.combiner} reach on {comparison.dataset}?"
    headline = f"{what} {_number(row.mean, comparison)}{spread}."
    sentences = ["There is nothing to compare with: name a second run, such as one with --combiner sum."]
    if row.std is None:
        sentences.insert(0, "This is one seed, so the number says nothing about chance.")
    return Answer(question, headline, (*sentences, *_cost(comparison, row)), None)


def _sentence(best: Row, lead: Lead, comparison: Comparison) -> str:
    by = _number(abs(lead.difference), comparison)
    if lead.difference == 0:
        return f"{best.label} and {lead.row.label} have the same mean."
    if not lead.pairs:
        return f"{best.label} and {lead.row.label} share no seed: their means differ by {by}, untested."
    seeds = f"{lead.pairs} common seed" + ("s" if lead.pairs > 1 else "")
    if lead.p is None and lead.pairs > 1:
        return (
            f"{best.label} is ahead of {lead.row.label} by {by} over {seeds}: "
            "the same difference in each, so that the t-test is undefined."
        )
    if lead.p is None:
        return f"{best.label} is ahead of {lead.row.label} by {by} over {seeds}; one seed cannot be tested."
    verdict = "significant" if lead.significant else "not significant"
    return f"{best.label} is ahead of {lead.row.label} by {by} over {seeds}: {verdict} ({_p(lead.p)}, paired t-test)."


def _cost(comparison: Comparison, best: Row) -> tuple[str, ...]:
    reference = comparison.rows[0]
    if best.seconds is None:
        return ()
    took = f"{best.label} trained for {duration(best.seconds)}"
    if best is reference or reference.seconds is None:
        return (f"{took} per seed.",)
    ratio = best.seconds / reference.seconds
    return (f"{took} per seed, {ratio:.2f} times as long as {reference.label}.",)


def _next(found: Sequence[Lead]) -> tuple[str, ...]:
    """Return what would settle the question, if it is not settled."""
    if all(lead.significant for lead in found):
        return ()
    pairs = min(lead.pairs for lead in found)
    if pairs < 2:
        return ("To tell differences from chance, run every configuration with the same seeds: --seed 0,1,2,3,4.",)
    return (f"More seeds would narrow this down: {pairs} common seeds so far.",)


def duration(seconds: float) -> str:
    """Return a time in the largest unit that keeps it above one: ``2.5 h``."""
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _number(value: float, comparison: Comparison) -> str:
    digits = 4 if all(abs(row.mean) < 2 for row in comparison.rows) else 2
    return f"{value:.{digits}f}"


def _p(value: float) -> str:
    return f"p = {value:.3f}" if value >= 1e-3 else "p < 0.001"
