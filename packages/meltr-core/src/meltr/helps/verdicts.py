"""What a comparison on the beds says: differences, paired tests with Holm's correction, the noise floor, ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from meltr.helps.trial import Trial
from meltr.report.statistics import deviation, holm, mean, paired_t

REFERENCES = ("primary", "sum")
"""What a method has to beat: not to use the auxiliary losses, and to use them without thinking."""

EQUAL = ("sum", "sum, other order")
"""Two methods that are equal by construction; what parts them is noise."""

Results = Mapping[str, Mapping[str, Trial]]
"""By bed, then by method."""


CHOICES = (
    REFERENCES,
    ("sum", "meltr, shares"),
    (*REFERENCES, "meltr, shares"),
    (*REFERENCES, "one helper"),
)
"""Methods that are trained side by side, so that validation chooses one of them: their cost is that of all."""


def choice_name(names: Sequence[str]) -> str:
    """Return the name of the row of a choice between these methods."""
    return "best of " + ", ".join(names)


@dataclass(frozen=True)
class Difference:
    """A method minus another one on one bed, over common seeds; below 0: the method is better.

    Args:
        mean: Of the differences.
        p: Two-sided, of the paired t-test, Holm-corrected within its family; None if it is undefined.
    """

    mean: float
    p: float | None

    @property
    def significant(self) -> bool:
        """True if p < 0.05."""
        return self.p is not None and self.p < 0.05


def against(results: Results, method: str, references: Sequence[str] = REFERENCES) -> dict[str, dict[str, Difference]]:
    """Return a method minus every reference on every bed that has both; one Holm family per method.

    Args:
        results: Test scores, lower is better.
        method: Its name.
        references: Names of other methods.

    Returns:
        By bed, then by reference.
    """
    pairs = [
        (bed, reference, _differences(trials[method], trials[reference]))
        for bed, trials in results.items()
        for reference in references
        if method in trials and reference in trials and reference != method
    ]
    corrected = holm([paired_t(values) for _, _, values in pairs])
    found: dict[str, dict[str, Difference]] = {}
    for (bed, reference, values), p in zip(pairs, corrected, strict=True):
        found.setdefault(bed, {})[reference] = Difference(mean(values), p)
    return found


def noise_floor(trials: Mapping[str, Trial]) -> float | None:
    """Return what two equal methods differ by in 95 of 100 comparisons with as many seeds; None if it is not known.

    It is 1.96 s / sqrt(n), with s the deviation of the differences of two methods that are equal by construction.
    """
    if any(name not in trials for name in EQUAL):
        return None
    spread = deviation(_differences(*(trials[name] for name in EQUAL)))
    return None if spread is None else 1.96 * spread / math.sqrt(len(trials[EQUAL[0]].test))


def mean_ranks(results: Results) -> dict[str, float]:
    """Return the mean rank of every method that was measured on all beds, best first; 1 is the best rank."""
    common = set.intersection(*(set(trials) for trials in results.values())) if results else set()
    ranks: dict[str, list[float]] = {name: [] for name in common}
    for trials in results.values():
        scores = {name: mean(trials[name].test) for name in common}
        for name in common:
            lower = sum(other < scores[name] for other in scores.values())
            equal = sum(other == scores[name] for other in scores.values())
            ranks[name].append(lower + (equal + 1) / 2)
    return dict(sorted(((name, mean(own)) for name, own in ranks.items()), key=lambda pair: (pair[1], pair[0])))


def with_choices(results: Results) -> dict[str, dict[str, Trial]]:
    """Return the results with a row for every one of `CHOICES`: for each seed, the method that is best on validation.

    Beds whose trials do not hold validation scores of all of them get no such row.
    """
    found = {bed: dict(trials) for bed, trials in results.items()}
    for trials in found.values():
        for names in CHOICES:
            own = [trials[name] for name in names if name in trials and trials[name].validation]
            if len(own) == len(names):
                trials[choice_name(names)] = _chosen(own)
    return found


def _chosen(trials: Sequence[Trial]) -> Trial:
    """Return the trial that takes, for each seed, the scores of the one that is best on validation."""
    seeds = range(len(trials[0].test))
    best = [trials[min((each.validation[seed], place) for place, each in enumerate(trials))[1]] for seed in seeds]
    return Trial(
        [each.test[seed] for seed, each in enumerate(best)],
        [each.last[seed] for seed, each in enumerate(best)],
        [mean(values) for values in zip(*(each.weights for each in best), strict=True)],
        sum(each.seconds for each in trials),
        [each.validation[seed] for seed, each in enumerate(best)],
    )


def best_fixed(trials: Mapping[str, Trial]) -> tuple[str, float] | None:
    """Return the best of the fixed weights by test score, chosen afterwards, and its score; None if there is none."""
    fixed = {
        name: mean(trial.test) for name, trial in trials.items() if name.startswith("fixed ") or name in REFERENCES
    }
    return min(fixed.items(), key=lambda pair: pair[1]) if fixed else None


def _differences(one: Trial, other: Trial) -> list[float]:
    return [mine - theirs for mine, theirs in zip(one.test, other.test, strict=True)]
