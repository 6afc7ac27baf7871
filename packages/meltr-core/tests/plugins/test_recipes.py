"""Recipes in files: what a run gets from one, and what is refused."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from meltr.errors import PluginError, UserError
from meltr.folders.places import choose_folder
from meltr.plugins import Registry, discover
from meltr.recipes import all_recipes, find_recipe, sweep_files
from meltr.settings import resolve
from recipe_backbone import PACKAGE, RECIPES, write_package

BASELINE = "table3/rings-baseline"


@pytest.fixture(autouse=True)
def _core_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load core and the plugins in files."""
    monkeypatch.setenv("MELTR_PLUGINS", "")


@pytest.fixture(scope="module")
def plugin(tmp_path_factory) -> Path:
    return write_package(tmp_path_factory.mktemp("recipes"))


@pytest.fixture
def registry(plugin, monkeypatch) -> Registry:
    monkeypatch.syspath_prepend(plugin.parents[1])
    return discover([plugin])


def test_a_recipe_is_a_whole_run(registry, tmp_path):
    spec = resolve(registry, preset="table3/rings")
    assert (spec.backbone, spec.task, spec.dataset, spec.preset) == ("toy", "classification", "rings", "table3/rings")
    assert spec.bilevel.gamma == 0.5
    assert (spec.train.epochs, spec.train.lr) == (7, 0.01)  # the row's own, over those of its base
    assert spec.train.batch_size == 32  # of the base
    assert choose_folder(spec, tmp_path, None, overwrite=False).name == "table3-rings"


def test_in_miniature_the_base_is_that_of_the_sample(registry):
    spec = resolve(registry, preset="table3/rings", flags={"sample": True})
    assert spec.bilevel.gamma == 0.5
    assert (spec.train.max_steps, spec.train.lr) == (4, 0.02)
    assert (spec.train.epochs, spec.train.batch_size) == (1, 64)
    assert spec.combiner_options["width"] == 16


def test_the_user_has_the_last_word(registry):
    spec = resolve(registry, preset="table3/rings", flags={"train.epochs": 2}, sets=["gamma=0.25"])
    assert (spec.train.epochs, spec.bilevel.gamma) == (2, 0.25)
    again = resolve(registry, config=spec.model_dump(mode="json"))
    assert again == spec


@pytest.mark.parametrize("flags", [{}, {"sample": True}, {"fidelity": "released"}])
def test_settings_for_another_combiner_than_the_row_s_are_dropped(registry, flags):
    spec = resolve(registry, preset=BASELINE, flags=flags)
    assert (spec.combiner, spec.combiner_options) == ("fixed", {"weights": [1, 0.5, 0.25]})


def test_the_order_is_the_paper_s_and_an_unknown_figure_is_none(registry):
    first, second = all_recipes(registry, 3)
    assert [first.name, second.name] == [BASELINE, "table3/rings"]
    assert second.paper.figures == {"top1": 51.7, "top5": None}
    assert second.hours is None
    assert sweep_files(registry).keys() >= {"table3"}


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"preset": "table3/rinks"}, "there is no recipe 'table3/rinks'.*Did you mean 'table3/rings'"),
        ({"preset": "table3/rings", "dataset": "spirals"}, "unknown data set 'spirals'"),
        ({"preset": "usuall", "backbone": "toy"}, "backbone 'toy' has no recipe 'usuall'"),
    ],
)
def test_wrong_names_are_refused(registry, choice, message):
    with pytest.raises(UserError, match=f"(?s){message}"):
        resolve(registry, **choice)


def test_another_data_set_than_the_recipe_s_is_refused(registry):
    info = registry.backbones["toy"]
    entry = info.tasks[0].model_copy(update={"datasets": ("rings", "discs")})
    registry.backbones["toy"] = info.model_copy(update={"tasks": (entry,)})
    registry.datasets["discs"] = registry.datasets["rings"].model_copy(update={"name": "discs"})
    with pytest.raises(UserError, match=r"(?s)for data set 'rings', not 'discs'.*--recipe none"):
        resolve(registry, preset="table3/rings", dataset="discs")
    assert resolve(registry, preset="none", backbone="toy", dataset="discs").preset is None


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"settings": {"dataset": "discs"}}, "sets dataset, which a recipe cannot"),
        ({"statuss": "parity"}, "statuss: Extra inputs are not permitted"),
        ({"status": "fine"}, "status: Input should be"),
        ({"paper": {**RECIPES["table3/rings"]["paper"], "figures": {"top1": None}}}, "write 'unknown'"),
        ({"paper": {**RECIPES["table3/rings"]["paper"], "table": 4}}, "is of table 4, but is called table3/rings"),
    ],
)
def test_a_file_that_is_not_a_recipe_is_the_plugin_s_fault(tmp_path, monkeypatch, change, problem):
    plugin = write_package(tmp_path, {"table3/rings": {**RECIPES["table3/rings"], **change}})
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, PACKAGE, raising=False)
    with pytest.raises(PluginError, match=problem):
        resolve(discover([plugin]), preset="table3/rings")


def test_two_backbones_cannot_have_the_same_recipe(registry):
    registry = dataclasses.replace(registry, backbones=dict(registry.backbones))
    registry.backbones["other"] = registry.backbones["toy"].model_copy(update={"name": "other"})
    with pytest.raises(PluginError, match="'toy' and 'other' both have a recipe 'table3/rings"):
        find_recipe(registry, "table3/rings")
    registry.backbones["other"] = registry.backbones["other"].model_copy(update={"recipes": "nowhere_at_all:recipes"})
    with pytest.raises(PluginError, match="'nowhere_at_all:recipes' cannot be found"):
        find_recipe(registry, "table3/rings")
