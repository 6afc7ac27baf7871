"""The recipes of the installed backbones: every one of them is a run that can start."""

from __future__ import annotations

import functools

import pytest

from command_line import call
from meltr.plugins import Registry, discover
from meltr.recipes import RecipeInfo, all_recipes, sweep_files
from meltr.settings import read_yaml, resolve
from meltr.sweeps.pieces import Given, pieces_of
from meltr.sweeps.plan import load_sweep, points_of


@functools.cache
def registry() -> Registry:
    return discover()


RECIPES = {recipe.name: recipe for recipe in all_recipes(registry())}

if not RECIPES:
    pytest.skip("no installed backbone has recipes", allow_module_level=True)


@pytest.fixture(params=list(RECIPES.values()), ids=list(RECIPES))
def recipe(request) -> RecipeInfo:
    return request.param


@pytest.mark.parametrize("flags", [{}, {"sample": True}, {"fidelity": "released"}], ids=str)
def test_its_settings_are_valid(recipe, flags):
    spec = resolve(registry(), preset=recipe.name, flags=flags)
    assert (spec.preset, spec.backbone, spec.dataset) == (recipe.name, recipe.backbone, recipe.dataset)
    if "weights" in spec.combiner_options:
        assert len(spec.combiner_options["weights"]) == len(spec.losses)
    if spec.sample:
        assert spec.train.max_steps is not None, "a miniature takes few steps"


def test_its_figures_are_of_metrics_that_its_task_has(recipe):
    if recipe.paper.table != 8:  # which is about cost
        assert recipe.paper.figures.keys() <= set(registry().task(recipe.task).metrics)


def test_its_files_are_settings_of_its_backbone(recipe):
    spec = resolve(registry(), preset=recipe.name)
    for key in recipe.files:
        section, _, name = key.partition(".")
        assert getattr(spec, section)[name] is None, "the user names the file"


def test_rows_that_differ_in_the_paper_are_different_runs():
    """Two rows of a table are never the same run by mistake."""
    seen: dict[tuple[int, str], str] = {}
    for recipe in RECIPES.values():
        spec = resolve(registry(), preset=recipe.name).model_dump(mode="json", exclude={"preset"})
        other = seen.setdefault((recipe.paper.table, str(spec)), recipe.name)
        assert other == recipe.name, f"{recipe.name} is the same run as {other}"


def test_places_in_a_table_are_taken_once():
    places = [(each.backbone, each.paper.table, each.paper.place) for each in RECIPES.values()]
    assert len(places) == len(set(places))


def test_the_sweep_of_a_table_has_exactly_its_rows(tmp_path):
    shipped = sweep_files(registry())
    for name, path in shipped.items():
        sweep = load_sweep(name, registry())
        pieces = pieces_of(registry(), sweep, points_of(sweep), Given(tmp_path))
        assert {piece.state() for piece in pieces} == {"new"}
        if name.startswith("table"):
            rows = [each.name for each in all_recipes(registry(), int(name.removeprefix("table")))]
            assert read_yaml(path)["grid"] == {"recipe": rows}


def test_meltr_run_shows_what_a_recipe_would_do(tmp_path):
    name = next(iter(RECIPES))
    shown = call("run", "--recipe", name, "--dry-run", "--output-dir", tmp_path, "--seed", "0,1")
    assert shown.exit_code == 0, shown.output
    assert f"preset: {name}\n" in shown.stdout
    assert str(tmp_path / name.replace("/", "-") / "seed-1") in shown.stdout
    assert not list(tmp_path.iterdir())
