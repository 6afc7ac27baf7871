"""Recipes: named sets of settings, in Python or as one file per row of the paper's tables. Imports no torch.

A backbone registers short recipes in Python (`BackboneInfo.presets`: settings for a task) and whole ones as files
(`BackboneInfo.recipes`: task, data set, settings, and the paper's figure). Both have one name space and one option,
``--recipe``. A recipe in a file is called by its place, such as ``table3/msvd``.
"""

from __future__ import annotations

import importlib.resources
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from meltr.errors import PluginError, UserError, closest, did_you_mean
from meltr.limits import SETTINGS_BYTES, UnreadableError, file_text, from_yaml
from meltr.plugins import Registry
from meltr.specs import BackboneInfo, Info, PresetInfo

STATUSES = {
    "reproduced": "run on the paper's data; its figure lies within the spread of ours",
    "other-data": "the method was measured on other data, not on the paper's",
    "parity": "model, losses and training steps agree with the released code; the figure was not measured",
}
"""What a recipe's status means."""

SWEEPS = "sweeps"
"""Folder of a backbone's recipes that holds sweeps."""

UNKNOWN = "unknown"


class PaperRow(Info):
    """A row of a table of the paper.

    Args:
        table: Number of the table.
        place: Position of the row in the table, from 1.
        part: The part of the table, usually a data set.
        row: What the paper calls the row.
        figures: Metric -> the paper's figure in the metric's unit; None (in files ``unknown``): not in our sources.
        note: What is not as in the paper, or not certain.
    """

    table: int = Field(ge=1, le=12)
    place: int = Field(ge=1)
    part: str
    row: str
    figures: dict[str, float | None] = Field(min_length=1)
    note: str = ""

    @field_validator("figures", mode="before")
    @classmethod
    def _unknown(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        if None in value.values():
            raise ValueError(f"write {UNKNOWN!r} for a figure that is not in our sources")
        return {name: None if each == UNKNOWN else each for name, each in value.items()}


class RecipeInfo(Info):
    """A recipe in a file: a whole run.

    Args:
        name: Its place below the folder of recipes, without the ending: ``table3/msvd``.
        backbone: The backbone that it belongs to.
        summary: One line.
        task: The task.
        dataset: The data set.
        base: The recipe in Python whose settings it starts from; None: the default for task and data set, which
            ``--sample`` and ``--fidelity released`` also choose.
        settings: Dotted setting -> value: what makes the row, with and without ``--sample``.
        full: The same, only without ``--sample``: learning rates, epochs, batches.
        miniature: The same, only with ``--sample``.
        files: Setting -> the published file that it names, such as the weights that the run starts from; not for
            ``--sample``.
        paper: The row of the paper; None: none.
        hardware: What the run needs, as far as it is known.
        hours: Hours on that hardware, measured; None (in files ``unknown``): not measured.
        status: See `STATUSES`.
    """

    name: str
    backbone: str
    summary: str
    task: str
    dataset: str
    base: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    full: dict[str, Any] = Field(default_factory=dict)
    miniature: dict[str, Any] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict)
    paper: PaperRow | None = None
    hardware: str = UNKNOWN
    hours: float | None = None
    status: Literal["reproduced", "other-data", "parity"]

    @field_validator("hours", mode="before")
    @classmethod
    def _not_measured(cls, value: Any) -> Any:
        return None if value == UNKNOWN else value

    def command(self, *, sample: bool = False) -> str:
        """Return the command that runs it, without seeds; with `sample` in miniature."""
        files = [f"--set {key.rpartition('.')[2]}={file}" for key, file in self.files.items()]
        return " ".join([f"meltr run --recipe {self.name}", *(["--sample"] if sample else ["--data-root DIR", *files])])


def folder_of(info: BackboneInfo) -> Path | None:
    """Return the folder with the recipes of a backbone; None if it has none.

    Raises:
        PluginError: If there is no such folder.
    """
    if info.recipes is None:
        return None
    package, _, name = info.recipes.partition(":")
    try:
        folder = Path(str(importlib.resources.files(package).joinpath(name)))
    except (ImportError, TypeError) as error:
        raise PluginError(f"backbone {info.name!r}: its recipes {info.recipes!r} cannot be found: {error}") from error
    if not folder.is_dir():
        raise PluginError(f"backbone {info.name!r}: its recipes {info.recipes!r} are not a folder")
    return folder


def recipe_files(registry: Registry, kind: str = "*") -> dict[str, tuple[BackboneInfo, Path]]:
    """Return the files of recipes by name, with their backbones; nothing is read.

    Args:
        registry: The plugins found.
        kind: Only recipes in folders that match, such as ``table3``.

    Raises:
        PluginError: If two backbones have a recipe of the same name.
    """
    found: dict[str, tuple[BackboneInfo, Path]] = {}
    for info in registry.backbones.values():
        folder = folder_of(info)
        for path in sorted(folder.glob(f"{kind}/*.yaml")) if folder else ():
            name = f"{path.parent.name}/{path.stem}"
            if path.parent.name == SWEEPS:
                continue
            if name in found:
                raise PluginError(f"backbones {found[name][0].name!r} and {info.name!r} both have a recipe {name!r}")
            found[name] = (info, path)
    return found


def sweep_files(registry: Registry) -> dict[str, Path]:
    """Return the files of sweeps that backbones bring, by name."""
    folders = [folder for folder in map(folder_of, registry.backbones.values()) if folder]
    return {path.stem: path for folder in folders for path in sorted(folder.glob(f"{SWEEPS}/*.yaml"))}


def all_recipes(registry: Registry, table: int | None = None) -> list[RecipeInfo]:
    """Return the recipes in files in the order of the paper.

    Args:
        registry: The plugins found.
        table: Only those of this table.

    Raises:
        PluginError: If a file is not a recipe.
    """
    files = recipe_files(registry, "*" if table is None else f"table{table}")
    found = [read_recipe(path, info, name) for name, (info, path) in files.items()]
    return sorted(found, key=lambda each: (each.paper.table, each.paper.place) if each.paper else (99, 0))


def read_recipe(path: Path, info: BackboneInfo, name: str) -> RecipeInfo:
    """Read a recipe.

    Raises:
        PluginError: If the file is not one.
    """
    try:
        content = from_yaml(file_text(path, most=SETTINGS_BYTES), path)
        if not isinstance(content, dict):
            raise PluginError(f"{path} is not a recipe: it holds {type(content).__name__}")
        recipe = RecipeInfo.model_validate({**content, "name": name, "backbone": info.name})
    except UnreadableError as error:
        raise PluginError(error.message) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise PluginError(f"{path} is not a recipe: {where}: {first['msg']}") from error
    if recipe.paper is not None and not name.startswith(f"table{recipe.paper.table}/"):
        raise PluginError(f"{path} says that it is of table {recipe.paper.table}, but is called {name}")
    return recipe


def find_recipe(registry: Registry, name: str | None) -> RecipeInfo | None:
    """Return the recipe in a file called `name`; None if that is the name of a recipe in Python.

    Raises:
        UserError: If it is neither.
    """
    if name is None or "/" not in name or any(preset.name == name for preset in _presets(registry)):
        return None
    files = recipe_files(registry)
    if name not in files:
        raise unknown_recipe(registry, name)
    info, path = files[name]
    return read_recipe(path, info, name)


def unknown_recipe(registry: Registry, name: str) -> UserError:
    """Return the error for a name that no recipe has, in a file or in Python."""
    close = closest(name, [*recipe_files(registry), *(preset.name for preset in _presets(registry))])
    guess = f"Did you mean {close!r}? " if close else ""
    return UserError(f"there is no recipe {name!r}", f"{guess}`meltr recipes` lists them.")


def _presets(registry: Registry) -> list[PresetInfo]:
    return list(itertools.chain.from_iterable(info.presets for info in registry.backbones.values()))


def check_identity(recipe: RecipeInfo, backbone: str, task: str, dataset: str) -> None:
    """Check that a run is the one that its recipe describes.

    Raises:
        UserError: If the user asked for another backbone, task or data set.
    """
    asked = {"backbone": backbone, "task": task, "dataset": dataset}
    for kind, value in asked.items():
        own = getattr(recipe, kind)
        if value != own:
            hint = f"Remove --{kind}, or name another recipe: `meltr recipes` lists them; --recipe none uses none."
            noun = kind.replace("dataset", "data set")
            raise UserError(f"recipe {recipe.name!r} is for {noun} {own!r}, not {value!r}", hint)


def settings_for(
    info: BackboneInfo,
    task: str,
    dataset: str,
    *,
    recipe: RecipeInfo | None,
    name: str | None,
    sample: bool,
    released: bool,
) -> dict[str, dict[str, Any]]:
    """Return the names of the recipes of a run with their settings; the last one is the run's, and counts first.

    Args:
        info: The backbone.
        task: The task.
        dataset: The data set.
        recipe: The recipe in a file, if the user named one.
        name: Otherwise the name that the user gave: that of a recipe in Python, ``none``, or None for the default.
        sample: The run is on a synthetic sample.
        released: The run follows the released code.

    Raises:
        UserError: If there is no such recipe.
        PluginError: If it sets what a recipe cannot.
    """
    default = default_preset(info, task, dataset, sample=sample, released=released)
    if recipe is None:
        preset = find_preset(info, name or default)
        return {preset.name: preset.settings} if preset else {}
    base = find_preset(info, default if recipe.base is None or sample else recipe.base)
    own = {**recipe.settings, **(recipe.miniature if sample else recipe.full)}
    _check_settable(info, recipe.name, own)
    return {**({base.name: base.settings} if base else {}), recipe.name: own}


def default_preset(info: BackboneInfo, task: str, dataset: str, *, sample: bool, released: bool) -> str | None:
    """Return the name of the recipe used if none is given; None if there is none."""
    chosen = [info.sample_presets] * sample + [info.released_presets] * released + [info.default_presets]
    for names in chosen:
        for key in (f"{task}/{dataset}", dataset, task):
            if key in names:
                return names[key]
    return None


def find_preset(info: BackboneInfo, name: str | None) -> PresetInfo | None:
    """Return the recipe in Python called `name`; None for None and ``"none"``.

    Raises:
        UserError: If the backbone has none of that name.
        PluginError: If it sets what a recipe cannot.
    """
    presets = {preset.name: preset for preset in info.presets}
    if name is None or (name == "none" and name not in presets):
        return None
    if name not in presets:
        raise UserError(f"backbone {info.name!r} has no recipe {name!r}", did_you_mean(name, [*presets, "none"]))
    _check_settable(info, name, presets[name].settings)
    return presets[name]


def _check_settable(info: BackboneInfo, name: str, settings: Mapping[str, Any]) -> None:
    fixed = sorted({"backbone", "task", "dataset", "preset"} & settings.keys())
    if fixed:
        raise PluginError(f"recipe {name!r} of backbone {info.name!r} sets {', '.join(fixed)}, which a recipe cannot")
