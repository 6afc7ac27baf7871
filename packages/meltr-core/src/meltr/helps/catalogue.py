"""All beds by name, and what those on real data need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

from meltr.errors import UserError
from meltr.helps import real, shared_data
from meltr.helps.beds import Bed, check_known
from meltr.helps.made import MADE, made


@dataclass(frozen=True)
class BedInfo:
    """A bed of the catalogue.

    Args:
        truth: What the auxiliary tasks do to the primary task: by construction, or by a grid of fixed weights.
        summary: One line.
        build: Makes the bed for some seeds.
        missing: Returns what is needed and not there, and where it belongs; None if nothing is.
        real: True if the data are real.
    """

    truth: str
    summary: str
    build: Callable[[Sequence[int]], Bed]
    missing: Callable[[], str | None] = lambda: None
    real: bool = True


def _package(module: str, name: str) -> Callable[[], str | None]:
    return lambda: None if find_spec(module) else f"the package {name} is not installed: pip install {name}"


_CIFAR = "CIFAR-100, principal components:"

BEDS: dict[str, BedInfo] = {
    **{name: BedInfo(spec[0], spec[1], partial(made, name), real=False) for name, spec in MADE.items()},
    "digits": BedInfo(
        "help", "60 labels of scikit-learn's digits; five helpers.", real.digits, _package("sklearn", "scikit-learn")
    ),
    "mnist1d": BedInfo(
        "neutral", "400 labels of MNIST-1D; three helpers.", real.mnist1d, _package("mnist1d", "mnist1d")
    ),
    "mosi": BedInfo(
        "hurt", "CMU-MOSI: sentiment; six helpers.", shared_data.mosi, partial(shared_data.missing, "mosi")
    ),
    "pom": BedInfo(
        "neutral", "POM: one rating; sixteen other ratings.", shared_data.pom, partial(shared_data.missing, "pom")
    ),
    "pom-contrary": BedInfo(
        "contradictory",
        "POM: the same, and two that contradict the first.",
        partial(shared_data.pom, contrary=True),
        partial(shared_data.missing, "pom"),
    ),
    "cifar-few": BedInfo(
        "help",
        f"{_CIFAR} 1,200 fine labels; three helpers.",
        partial(shared_data.cifar, few=True),
        partial(shared_data.missing, "cifar100"),
    ),
    "cifar-coarse": BedInfo(
        "neutral",
        f"{_CIFAR} 20 classes; fine classes as helper, and two more.",
        partial(shared_data.cifar, few=False),
        partial(shared_data.missing, "cifar100"),
    ),
}
"""Every bed by name: the made ones first."""


def build(name: str, seeds: Sequence[int]) -> Bed:
    """Make a bed.

    Args:
        name: One of `BEDS`.
        seeds: One number per copy.

    Raises:
        UserError: If the name is unknown, or its data are not there.
    """
    check_known(name, BEDS)
    lacks = BEDS[name].missing()
    if lacks:
        raise UserError(f"bed {name!r}: {lacks}", "Beds without data: meltr helps --list")
    return BEDS[name].build(seeds)
