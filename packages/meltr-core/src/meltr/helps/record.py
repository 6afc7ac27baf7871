"""Trials in a file: a comparison that was interrupted goes on, and a table can be made again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from meltr.errors import UserError
from meltr.files import encode, write_text
from meltr.helps.trial import Trial
from meltr.limits import UnreadableError, file_text, from_json

FORMAT = 1


@dataclass
class Record:
    """The trials of a comparison.

    Args:
        seeds: Common to all trials.
        where: When and where they ran (see `meltr.bench.table8.circumstances`).
        trials: By bed, then by method.
    """

    seeds: list[int]
    where: dict[str, Any]
    trials: dict[str, dict[str, Trial]] = field(default_factory=dict)

    def add(self, bed: str, method: str, trial: Trial) -> None:
        """Add a trial."""
        self.trials.setdefault(bed, {})[method] = trial

    def has(self, bed: str, method: str) -> bool:
        """Return whether this trial has been made."""
        return method in self.trials.get(bed, {})

    def save(self, path: Path) -> None:
        """Write the record to a file, at once or not at all."""
        content = {
            "format": FORMAT,
            "seeds": self.seeds,
            "where": self.where,
            "trials": {bed: {name: asdict(trial) for name, trial in own.items()} for bed, own in self.trials.items()},
        }
        write_text(path, json.dumps(encode(content), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Record:
        """Read a record.

        Raises:
            UserError: If the file cannot be read or is not a record.
        """
        hint = "Give a file that `meltr helps --json FILE` wrote, or another name."
        try:
            content = from_json(file_text(path), path, finite=False)
        except (OSError, UnreadableError) as error:
            raise UserError(f"{path} cannot be read: {error}", hint) from error
        try:
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']!r}, expected {FORMAT}")
            seeds = [int(seed) for seed in content["seeds"]]
            trials = {
                str(bed): {str(name): _trial(values, len(seeds)) for name, values in own.items()}
                for bed, own in content["trials"].items()
            }
            return cls(seeds, dict(content["where"]), trials)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UserError(f"{path} is not a record of `meltr helps`: {error!r}", hint) from error

    @classmethod
    def begin(cls, path: Path | None, seeds: Sequence[int], where: dict[str, Any]) -> Record:
        """Return the record of a file that exists, else a new one.

        Raises:
            UserError: If the file is of other seeds, or not a record.
        """
        if path is None or not path.exists():
            return cls(list(seeds), where)
        found = cls.load(path)
        if found.seeds != list(seeds):
            raise UserError(
                f"{path} is of seeds {_short(found.seeds)}, not {_short(seeds)}",
                f"Use --seeds {_short(found.seeds)} to go on with it, or another file.",
            )
        return found


def _trial(values: dict[str, Any], seeds: int) -> Trial:
    found = Trial(
        [float(each) for each in values["test"]],
        [float(each) for each in values["last"]],
        [float(each) for each in values["weights"]],
        float(values["seconds"]),
        [float(each) for each in values.get("validation", [])],
    )
    if len(found.test) != seeds or len(found.last) != seeds or len(found.validation) not in (0, seeds):
        raise ValueError(f"{len(found.test)} test scores for {seeds} seeds")
    return found


def _short(seeds: Sequence[int]) -> str:
    if list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))) and len(seeds) > 1:
        return f"{seeds[0]}-{seeds[-1]}"
    return ",".join(map(str, seeds))
