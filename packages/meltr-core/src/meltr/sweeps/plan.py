"""What a sweep consists of: the file, its points (one combination of settings each), and their runs, one per seed."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator

from meltr.errors import UserError, did_you_mean
from meltr.plugins import Registry
from meltr.recipes import sweep_files
from meltr.settings import read_yaml
from meltr.specs import Info

_LONGEST = 100
"""Longest name of a folder that is made from settings."""


class Space(Info):
    """The values of a setting that a search chooses from: an interval, or a list.

    Args:
        low: Smallest value; if it, `high` and `step` are written without a point, values are whole numbers.
        high: Largest value.
        log: Draw its logarithm evenly.
        step: Draw multiples of this above `low`.
        choices: The values, instead of an interval.
    """

    low: int | float | None = None
    high: int | float | None = None
    log: bool = False
    step: int | float | None = Field(default=None, gt=0)
    choices: tuple[Any, ...] = ()

    @model_validator(mode="after")
    def _one_of_both(self) -> Space:
        if self.choices and (self.low, self.high, self.step, self.log) != (None, None, None, False):
            raise ValueError("give choices, or low and high, not both")
        if not self.choices:
            if self.low is None or self.high is None or not self.low < self.high:
                raise ValueError("needs low < high, or a list of choices")
            if self.log and (self.low <= 0 or self.step is not None):
                raise ValueError("log needs low > 0, and no step")
        return self


class Sweep(Info):
    """A sweep.

    Args:
        name: Name of its folder.
        summary: What it is for, in one line.
        settings: Setting -> value, for every run; ``recipe`` names a recipe.
        grid: Setting -> its values: every combination is a point.
        search: Setting -> `Space`, instead of a grid.
        trials: Points of a search.
        seeds: Each point is run with each of these.
    """

    name: str = Field(pattern=r"^[\w.+-]+$")
    summary: str = ""
    settings: dict[str, Any] = Field(default_factory=dict)
    grid: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    search: dict[str, Space] = Field(default_factory=dict)
    trials: int = Field(default=20, ge=1)
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)

    @field_validator("search", mode="before")
    @classmethod
    def _lists_are_choices(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {name: {"choices": each} if isinstance(each, list) else each for name, each in value.items()}

    @model_validator(mode="after")
    def _consistent(self) -> Sweep:
        if bool(self.grid) == bool(self.search):
            raise ValueError("needs either a grid or a search")
        for name, values in self.grid.items():
            if not values:
                raise ValueError(f"the grid has no value for {name}")
        axes = {**self.grid, **self.search}.keys()
        if twice := sorted(axes & self.settings.keys()):
            raise ValueError(f"{', '.join(twice)} is both in settings and varied")
        if "seed" in (*axes, *self.settings):
            raise ValueError("seeds are given as seeds: [0, 1, 2]")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds names a seed twice")
        return self


@dataclass(frozen=True)
class Point:
    """One combination of settings.

    Args:
        name: Name of its folder.
        settings: Setting -> value, complete: also what all points share.
    """

    name: str
    settings: Mapping[str, Any]


def load_sweep(given: str, registry: Registry) -> Sweep:
    """Read a sweep.

    Args:
        given: A file, or the name of a sweep that a backbone brings.
        registry: The plugins found.

    Raises:
        UserError: If there is none, or the file is not a sweep.
    """
    path = Path(given)
    if not path.is_file():
        known = sweep_files(registry)
        if given not in known:
            hint = f"Give a file. {did_you_mean(given, known) if known else ''}".strip()
            raise UserError(f"there is no sweep {given!r}", hint)
        path = known[given]
    content = read_yaml(path)
    try:
        return Sweep.model_validate({"name": path.stem, **content})
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, each['loc'])) or path.name}: {each['msg']}" for each in error.errors()]
        problems = "\n".join(line.replace("Value error, ", "") for line in lines)
        hint = "It holds settings, grid or search, seeds; see docs/recipes.md."
        raise UserError(f"{path} is not a sweep:\n{problems}", hint) from error


def points_of(sweep: Sweep) -> list[Point]:
    """Return every combination of the grid, in the order of the file, each with a name of its own."""
    axes = [[(key, value) for value in values] for key, values in sweep.grid.items()]
    combinations = [dict(each) for each in itertools.product(*axes)]
    names = [point_name(each) for each in combinations]
    if len({name.lower() for name in names}) < len(names):  # too long, or characters that a name cannot have
        names = [f"{number:03d}-{name}"[:_LONGEST] for number, name in enumerate(names)]
    return [Point(name, {**sweep.settings, **each}) for name, each in zip(names, combinations, strict=True)]


def point_name(varied: Mapping[str, Any]) -> str:
    """Return a name made from the settings that vary: ``lr=0.1,combiner=sum``; of a recipe, its own name."""
    parts = []
    for key, value in varied.items():
        text = ",".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
        parts.append(text.rpartition("/")[2] if key == "recipe" else f"{key.rpartition('.')[2]}={text}")
    return re.sub(r"[^\w.+=,-]+", "-", ",".join(parts))[:_LONGEST].strip("-.,") or "point"
