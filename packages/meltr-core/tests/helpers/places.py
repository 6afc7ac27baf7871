"""Where the tests of all packages find files: the checkout, golden sets, and data beside the checkout.

Two environment variables choose other folders:

- ``MELTR_SHARED``: the folder beside the checkout with ``reference/`` (golden sets) and ``data/`` (real samples).
- ``MELTR_GOLDENS``: the golden sets of one backbone. A set is a folder with a ``config.json``, at any depth.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import pytest

HELPERS = Path(__file__).resolve().parent
CORE = HELPERS.parents[1]
"""The folder of the package meltr-core."""

ROOT = HELPERS.parents[3]
"""The folder of the checkout."""

TOY = HELPERS / "toy_backbone.py"
ASKING = HELPERS / "asking_backbone.py"
SHARED = Path(os.environ.get("MELTR_SHARED", ROOT.parent / "shared"))


def shared(*parts: str) -> Path:
    """Return a file or folder of ``MELTR_SHARED``; the test is skipped if it is not there."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path} does not exist (set MELTR_SHARED)")
    return path


def reference_table(page: str, title: str) -> dict[str, list[str]]:
    """Return the first table below a title of a page of the reference: the first cell of a row -> the other cells.

    The test is skipped if the page is not there.
    """
    text = shared("reference", page).read_text(encoding="utf-8")
    below = itertools.dropwhile(lambda line: not line.startswith("|"), text.partition(f"{title}\n")[2].splitlines())
    rows = [line.split("|")[1:-1] for line in itertools.takewhile(lambda line: line.startswith("|"), below)]
    return {first.strip(): [cell.strip() for cell in others] for first, *others in rows}


def published_vocabulary() -> Path:
    """Return the vocabulary of bert-base-uncased; the test is skipped if it is not there."""
    return shared("data", "violet_samples", "bert-base-uncased-vocab.txt")


def golden_root(backbone: str) -> Path:
    """Return the folder that is searched for the golden sets of a backbone.

    It is ``MELTR_GOLDENS`` if that is set, else ``reference/BACKBONE`` of ``MELTR_SHARED`` if that exists, else the
    small set in ``packages/meltr-BACKBONE/tests/goldens``.
    """
    given = os.environ.get("MELTR_GOLDENS")
    if given:
        return Path(given)
    beside = SHARED / "reference" / backbone
    return beside if beside.is_dir() else ROOT / "packages" / f"meltr-{backbone}" / "tests" / "goldens"


def golden_sets(backbone: str, file: str = "config.json") -> list[Path]:
    """Return every folder below `golden_root` that holds `file`, sorted.

    An empty list given to `pytest.mark.parametrize` ends the collection with an error (``empty_parameter_set_mark``).
    Where `file` is not part of every set, use `optional`.
    """
    return sorted(found.parent for found in golden_root(backbone).rglob(file))


def optional(found: list[Any], reason: str, *, values: int = 1) -> list[Any]:
    """Return `found` for `pytest.mark.parametrize`, or one skipped parameter with the reason if nothing was found.

    Args:
        found: The parameters.
        reason: Why there may be none.
        values: How many arguments one parameter fills.
    """
    return found or [pytest.param(*[None] * values, marks=pytest.mark.skip(reason=reason), id="none")]
