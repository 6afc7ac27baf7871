"""A comparison on the beds as a table in a terminal and in Markdown. Numbers are test scores, lower is better."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from meltr.helps import verdicts
from meltr.helps.methods import METHODS
from meltr.helps.verdicts import Difference, Results
from meltr.report.statistics import mean

LEGEND = (
    "Test score of the primary task, lower is better (share of wrong classes; mean absolute error on 'mosi', mean "
    "squared error on 'pom'), mean over seeds, at the epoch that is best on validation. Brackets: the difference from "
    "the better of 'primary' and 'sum'; * marks p < 0.05 in a paired t-test against it, corrected by Holm's method "
    "over all beds and both references of the method. Noise: what 'sum' differs by from itself with the examples in "
    "another order, in 95 of 100 comparisons of as many seeds. Rank: the mean over beds, 1 is best. Time: relative to "
    "'sum' on the same bed, for methods that train all seeds at once; those marked 'one by one' train them one after "
    "another; for races, ForkMerge, fixed weights and choices, the training steps relative to one run, least and most. "
    "Best of: all are trained, and validation chooses one for each seed."
)


def rows(results: Results) -> list[list[str]]:
    """Return the cells: a header, one row per method in the order of their ranks, the best fixed weights, the noise."""
    results = verdicts.with_choices(results)
    beds = list(results)
    ranks = verdicts.mean_ranks(results)
    rest = [name for trials in results.values() for name in trials if name not in ranks]
    found = [["method", "rank", *beds, "time"]]
    for name in dict.fromkeys([*ranks, *rest]):
        differences = verdicts.against(results, name)
        cells = [_cell(results, bed, name, differences.get(bed, {})) for bed in beds]
        found.append([name, f"{ranks[name]:.1f}" if name in ranks else "-", *cells, _time(results, name)])
    best = [verdicts.best_fixed(results[bed]) for bed in beds]
    found.append(["best fixed", "-", *("-" if each is None else f"{each[1]:.3f} ({each[0]})" for each in best), "-"])
    floors = [verdicts.noise_floor(results[bed]) for bed in beds]
    found.append(["noise", "-", *("-" if floor is None else f"±{floor:.3f}" for floor in floors), "-"])
    return found


def markdown(results: Results, head: str) -> str:
    """Return a Markdown table with a line above it and the legend below.

    Args:
        results: Test scores.
        head: How they were measured.
    """
    header, *body = rows(results)
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *body]
    return "\n".join([head, "", *(f"| {' | '.join(line)} |" for line in lines), "", LEGEND, ""])


def _cell(results: Results, bed: str, name: str, differences: dict[str, Difference]) -> str:
    trials = results[bed]
    if name not in trials:
        return "-"
    score = f"{mean(trials[name].test):.3f}"
    if name in verdicts.REFERENCES or not differences:
        return score
    strongest = min(differences, key=lambda reference: mean(trials[reference].test))
    found = differences[strongest]
    return f"{score} ({found.mean:+.3f}{'*' if found.significant else ''})"


def _time(results: Results, name: str) -> str:
    auxiliary = [len(trials[name].weights) - 1 for trials in results.values() if name in trials]
    steps = [found for each in auxiliary if (found := _steps(name, each)) is not None]
    if steps:
        return " to ".join(f"{each:.2f}" for each in dict.fromkeys([min(steps), max(steps)])) + " (steps)"
    ratios = [
        trials[name].seconds / trials["sum"].seconds
        for trials in results.values()
        if name in trials and "sum" in trials and trials["sum"].seconds > 0
    ]
    if not ratios:
        return "-"
    together = name not in METHODS or METHODS[name].side_by_side
    return f"{median(ratios):.2f}" if together else "one by one"


def _steps(name: str, auxiliary: int) -> float | None:
    """Return the steps of a search, or of a choice of searches and references, relative to one run; None: another."""
    search = METHODS[name].search if name in METHODS else None
    if search is not None:
        return search.steps(auxiliary)
    members = next((names for names in verdicts.CHOICES if verdicts.choice_name(names) == name), ())
    parts = [1.0 if each in verdicts.REFERENCES else _steps(each, auxiliary) for each in members]
    known = [part for part in parts if part is not None]
    return sum(known) if known and len(known) == len(parts) else None


def summary(results: Results, methods: Sequence[str]) -> list[str]:
    """Return a sentence per method: on which beds it is significantly better than both references, or worse."""
    lines = []
    for name in methods:
        differences = verdicts.against(results, name)
        better = [
            b for b, own in differences.items() if own and all(d.significant and d.mean < 0 for d in own.values())
        ]
        worse = [b for b, own in differences.items() if own and _worse_than_the_better(own)]
        lines.append(
            f"{name}: better than both primary and sum on {len(better)} of {len(differences)} beds"
            f"{_names(better)}; worse than the better of them on {len(worse)}{_names(worse)}."
        )
    return lines


def _worse_than_the_better(own: dict[str, Difference]) -> bool:
    strongest = max(own.values(), key=lambda difference: difference.mean)
    return strongest.significant and strongest.mean > 0


def _names(beds: Sequence[str]) -> str:
    return f" ({', '.join(beds)})" if beds else ""
