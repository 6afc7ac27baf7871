"""Reads the verdicts about auxiliary losses that lie in a run folder as ``diagnose.json``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from meltr.errors import UserError
from meltr.files import read_object

NAME = "diagnose.json"


@dataclass(frozen=True)
class Verdict:
    """What a diagnosis says about one auxiliary loss.

    Args:
        task: Name of the loss.
        verdict: In a few words, such as ``helps``.
        sentence: With its reason.
    """

    task: str
    verdict: str
    sentence: str


def read_verdicts(run: Path) -> tuple[Verdict, ...]:
    """Return the verdicts in a run folder; none if it has no ``diagnose.json``.

    The file is an object whose ``verdicts`` is a list of objects with the texts ``task``, ``verdict`` and ``sentence``.

    Raises:
        UserError: If the file is broken or is not of this form.
    """
    content = read_object(run / NAME)
    if content is None:
        return ()
    rows = content.get("verdicts")
    names = ("task", "verdict", "sentence")
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and all(isinstance(row.get(name), str) for name in names) for row in rows
    ):
        raise UserError(
            f"{run / NAME} has no list 'verdicts' of objects with the texts task, verdict and sentence.",
            "Write it again with meltr diagnose, or remove it.",
        )
    return tuple(Verdict(*(row[name] for name in names)) for row in rows)
