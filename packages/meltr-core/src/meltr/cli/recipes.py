"""``meltr recipes``: the runs of the paper's tables, and the settings that backbones recommend."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from meltr.cli.options import AsJson, registry_for
from meltr.cli.output import print_json, table
from meltr.errors import UserError, did_you_mean
from meltr.plugins import Registry
from meltr.recipes import STATUSES, UNKNOWN, RecipeInfo, all_recipes, find_recipe, unknown_recipe

Recipe = Annotated[str | None, typer.Argument(metavar="NAME", help="Show one recipe in full.")]
TableNumber = Annotated[int | None, typer.Option("--table", min=1, max=12, help="Only those of this table.")]
Backbone = Annotated[str | None, typer.Option(help="Only those of this backbone.")]
Status = Annotated[str | None, typer.Option(help=f"Only those with this status: {', '.join(STATUSES)}.")]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("recipes")(recipes)


def recipes(
    ctx: typer.Context,
    name: Recipe = None,
    *,
    number: TableNumber = None,
    backbone: Backbone = None,
    status: Status = None,
    as_json: AsJson = False,
) -> None:
    """List the recipes: one per row of the paper's tables, and those of each backbone; or show one of them."""
    registry = registry_for(ctx)
    if name is not None:
        _show(registry, name, as_json=as_json)
        return
    if status is not None and status not in STATUSES:
        raise UserError(f"there is no status {status!r}", did_you_mean(status, STATUSES))
    if backbone is not None:
        registry.backbone(backbone)
    found = [
        recipe
        for recipe in all_recipes(registry, number)
        if backbone in (None, recipe.backbone) and status in (None, recipe.status)
    ]
    presets = [] if number or status else _presets(registry, backbone)
    if as_json:
        print_json({"recipes": [each.model_dump(mode="json") for each in found], "presets": presets})
        return
    if not found and not presets:
        typer.echo("no recipe fits; `meltr recipes` lists all")
        return
    if found:
        head = ["recipe", "row", "data", "the paper's figure", "status"]
        typer.echo(table([head, *map(_row, found)], indent=""))
        used = dict.fromkeys(recipe.status for recipe in found)
        typer.echo("\n" + "\n".join(f"{each}: {STATUSES[each]}" for each in used))
        typer.echo("run one: meltr run --recipe NAME --data-root DIR, or --sample for a miniature of it")
    if presets:
        typer.echo(f"\nrecipes of {'a backbone' if backbone is None else backbone}, for --recipe with a task:")
        typer.echo(table([[each["name"], each["backbone"], each["summary"]] for each in presets]))


def _presets(registry: Registry, backbone: str | None) -> list[dict[str, Any]]:
    return [
        {"backbone": info.name, **preset.model_dump(mode="json")}
        for info in registry.backbones.values()
        for preset in info.presets
        if backbone in (None, info.name)
    ]


def _row(recipe: RecipeInfo) -> list[str]:
    paper = recipe.paper
    if paper is None:
        return [recipe.name, recipe.summary, recipe.dataset, "", recipe.status]
    return [recipe.name, paper.row, paper.part, _figures(recipe), recipe.status]


def _figures(recipe: RecipeInfo) -> str:
    figures = recipe.paper.figures if recipe.paper else {}
    return ", ".join(f"{name} {UNKNOWN if value is None else f'{value:g}'}" for name, value in figures.items())


def _show(registry: Registry, name: str, *, as_json: bool) -> None:
    recipe = find_recipe(registry, name)
    if recipe is None:
        found = [each for each in _presets(registry, None) if each["name"] == name]
        if not found:
            raise unknown_recipe(registry, name)
        if as_json:
            print_json(found)
            return
        for each in found:
            typer.echo(f"{name} (backbone {each['backbone']}): {each['summary']}")
            typer.echo(table([[key, str(value)] for key, value in each["settings"].items()]))
        return
    if as_json:
        print_json(recipe.model_dump(mode="json"))
        return
    paper = recipe.paper
    rows = [["summary", recipe.summary], ["command", recipe.command()]]
    if paper is not None:
        rows += [["paper", f"table {paper.table}, {paper.part}, {paper.row}"], ["figure", _figures(recipe)]]
        rows += [["note", paper.note]] if paper.note else []
    rows += [
        ["run", f"backbone {recipe.backbone}, task {recipe.task}, data set {recipe.dataset}"],
        ["hardware", recipe.hardware],
        ["hours", UNKNOWN if recipe.hours is None else f"{recipe.hours:g}"],
        ["status", f"{recipe.status}: {STATUSES[recipe.status]}"],
    ]
    for kind in ("settings", "full", "miniature", "files"):
        rows += [[kind, f"{key}={value}"] for key, value in getattr(recipe, kind).items()]
    typer.echo(table(rows, indent=""))
