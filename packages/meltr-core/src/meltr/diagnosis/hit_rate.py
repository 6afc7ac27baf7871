"""How often verdicts are right on beds with known truth: a record of verdicts, and the table made of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from meltr.diagnosis.effects import Estimate, of_mean
from meltr.diagnosis.verdicts import WORDS, Verdict, Word
from meltr.errors import UserError
from meltr.files import encode, write_text
from meltr.limits import UnreadableError, file_text, from_json
from meltr.report.statistics import mean

Truth = Literal["help", "hurt", "neither", "not known"]

TRUTHS: dict[tuple[str, str], Truth] = {
    ("shown", "shown"): "help",
    ("plenty", "shown"): "help",
    ("foreign", "foreign"): "hurt",
    ("contrary", "contrary"): "hurt",
    ("random", "random"): "neither",
    ("echo", "echo"): "neither",
    ("mixed", "shown"): "help",
    ("mixed", "random"): "neither",
    ("mixed", "foreign"): "not known",
}
"""Bed and loss -> what the loss does, by construction. In ``mixed`` the network has room for the foreign task."""

RIGHT: dict[Truth, tuple[Word, ...]] = {
    "help": ("helps",),
    "hurt": ("hurts",),
    "neither": ("cannot be told from noise", "costs more than it gives"),
    "not known": WORDS,
}

OPPOSITE: dict[Truth, tuple[Word, ...]] = {
    "help": ("hurts",),
    "hurt": ("helps",),
    "neither": ("helps", "hurts"),
    "not known": (),
}

FORMAT = 1

LEGEND = (
    "Verdicts on every seed of a bed. Right: 'helps' for a loss that helps, 'hurts' for one that hurts, and one of the "
    "last two for one that does neither. Wrong: a loss that helps is said to hurt, or the other way round, or one that "
    "does neither is said to do something; the rest is missed. Effect: how much lower the held-out primary loss is "
    "with the loss, relative to it, mean over seeds. Covered: how often the 95 % interval of a seed contains that "
    "mean. Alignment: cosine of the gradients on other examples, mean over seeds with its 95 % interval. Sign: how "
    "often the sign of the alignment alone would have been right (above 0: helps, below 0: hurts)."
)


@dataclass
class HitRate:
    """Verdicts by bed, loss and seed.

    Args:
        seeds: The seeds.
        where: When and where it was measured.
        found: Bed -> loss -> one entry per seed: verdict, effect relative to the primary loss, alignment, time.
    """

    seeds: list[int]
    where: dict[str, Any]
    found: dict[str, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)

    def add(self, bed: str, verdicts: Sequence[tuple[list[Verdict], float]]) -> None:
        """Add the verdicts of a bed.

        Args:
            bed: Its name.
            verdicts: Per seed: the verdicts, and the primary loss that effects are relative to.
        """
        own: dict[str, list[dict[str, Any]]] = {}
        for each, score in verdicts:
            for one in each:
                own.setdefault(one.task, []).append(_entry(one, score))
        self.found[bed] = own

    def save(self, path: Path) -> None:
        """Write the record to a file, at once or not at all."""
        content = {"format": FORMAT, "seeds": self.seeds, "where": self.where, "found": self.found}
        write_text(path, json.dumps(encode(content)) + "\n")

    @classmethod
    def load(cls, path: Path) -> HitRate:
        """Read a record.

        Raises:
            UserError: If it cannot be read or is not one.
        """
        try:
            content = from_json(file_text(path), path, finite=False)
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']!r}, expected {FORMAT}")
            return cls([int(seed) for seed in content["seeds"]], dict(content["where"]), dict(content["found"]))
        except (OSError, UnreadableError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is not a record of hit rates: {error!r}") from error

    def markdown(self) -> str:
        """Return the table with a line above it and the legend below."""
        head = (
            f"Measured on {self.where['date']} with `{self.where['command']}`, {len(self.seeds)} seeds "
            f"({self.seeds[0]} to {self.seeds[-1]}), torch {self.where['versions']['torch']}."
        )
        names = ["bed", "loss", "truth", *WORDS, "right", "wrong", "effect", "covered", "alignment", "sign"]
        rows = [names, ["---", "---", "---", *["---:"] * (len(names) - 3)]]
        for bed, losses in self.found.items():
            rows += [_row(bed, loss, entries) for loss, entries in losses.items()]
        table = [f"| {' | '.join(cells)} |" for cells in rows]
        return "\n".join([head, "", *table, "", self._total(), "", LEGEND, ""])

    def _total(self) -> str:
        """Return the numbers of right, missed and wrong verdicts of losses whose truth is known."""
        known = [
            (TRUTHS[bed, loss], entry["verdict"])
            for bed, losses in self.found.items()
            for loss, entries in losses.items()
            for entry in entries
            if TRUTHS[bed, loss] != "not known"
        ]
        right = sum(verdict in RIGHT[truth] for truth, verdict in known)
        wrong = sum(verdict in OPPOSITE[truth] for truth, verdict in known)
        share = 100 * right / len(known)
        return (
            f"Of {len(known)} verdicts about losses with known truth, {right} are right ({share:.0f} %), "
            f"{len(known) - right - wrong} miss an effect, and {wrong} are wrong."
        )


def _entry(one: Verdict, score: float) -> dict[str, Any]:
    relative = [None if each is None else each / score for each in (one.effect.mean, one.effect.low, one.effect.high)]
    numbers = {"effect": relative, "p": one.p, "alignment": one.alignment.mean, "time": one.time}
    rounded = {
        name: [_short(each) for each in value] if isinstance(value, list) else _short(value)
        for name, value in numbers.items()
    }
    return {"verdict": one.verdict, **rounded, "settled": one.settled}


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _row(bed: str, loss: str, entries: Sequence[dict[str, Any]]) -> list[str]:
    truth, verdicts = TRUTHS[bed, loss], [entry["verdict"] for entry in entries]
    effects = [entry["effect"] for entry in entries]
    centre = mean([each[0] for each in effects])
    covered = sum(each[1] is not None and each[1] <= centre <= each[2] for each in effects)
    alignment: Estimate = of_mean([entry["alignment"] for entry in entries])
    known = truth != "not known"
    right = sum(verdict in RIGHT[truth] for verdict in verdicts)
    wrong = sum(verdict in OPPOSITE[truth] for verdict in verdicts)
    signs = sum((entry["alignment"] > 0) == (truth == "help") for entry in entries)
    return [
        bed,
        loss,
        truth,
        *(str(verdicts.count(word)) for word in WORDS),
        str(right) if known else "-",
        str(wrong) if known else "-",
        f"{100 * centre:+.1f} %",
        f"{covered}/{len(entries)}",
        f"{alignment.mean:+.3f} ({alignment.low:+.3f} to {alignment.high:+.3f})",
        f"{signs}/{len(entries)}" if truth in ("help", "hurt") else "-",
    ]
