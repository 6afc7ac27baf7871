"""``meltr list``: what is installed, and which plugins are broken and why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from meltr.cli.options import AsJson, registry_for
from meltr.cli.output import print_json, table
from meltr.errors import UserError, did_you_mean
from meltr.plugins import Registry

SECTIONS = ("backbones", "tasks", "datasets", "combiners", "schemes", "estimators", "presets")

_EMPTY = {
    "backbones": "none: install an adapter package, or load a file with --plugin FILE",
    "datasets": "none: backbone packages provide them",
    "presets": "none: backbone packages provide them",
}


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("list")(list_command)


def list_command(
    ctx: typer.Context,
    section: Annotated[
        str | None,
        typer.Argument(help="backbones, tasks, datasets, combiners, schemes, estimators or presets; default: all."),
    ] = None,
    plugin: Annotated[list[Path] | None, typer.Option(help="Python file with a plugin; may be repeated.")] = None,
    as_json: AsJson = False,
) -> None:
    """List what is installed: backbones, tasks, data sets, combiners, ..., and broken plugins with their cause."""
    if section is not None and section not in SECTIONS:
        raise UserError(f"there is no section {section!r}", did_you_mean(section, SECTIONS))
    registry = registry_for(ctx, plugin or ())
    content = {name: describe(registry, name) for name in ([section] if section else SECTIONS)}
    broken = [{"name": each.name, "source": each.source, "cause": each.cause} for each in registry.broken]
    if as_json:
        print_json({**content, "broken": broken})
        return
    for name, entries in content.items():
        typer.echo(f"{name}:")
        typer.echo(table([_row(name, entry) for entry in entries]) or f"  {_EMPTY.get(name, 'none')}")
    if broken:
        typer.echo("broken plugins:")
        typer.echo("\n".join(f"  {each['name']} ({each['source']}): {each['cause']}" for each in broken))


def describe(registry: Registry, section: str) -> list[dict[str, Any]]:
    """Return the entries of a section as JSON-able mappings."""
    if section == "presets":
        return [
            {"backbone": info.name, **preset.model_dump(mode="json"), "default_for": _default_for(info, preset.name)}
            for info in registry.backbones.values()
            for preset in info.presets
        ]
    kind = section.removesuffix("s")
    entries: dict[str, Any] = getattr(registry, section)
    return [
        {**info.model_dump(mode="json", exclude={"presets"}), "source": registry.owner(kind, name)}
        for name, info in sorted(entries.items())
    ]


def _default_for(info: Any, preset: str) -> list[str]:
    return [key for key, name in info.default_presets.items() if name == preset]


def _row(section: str, entry: dict[str, Any]) -> list[str]:
    if section == "backbones":
        does = "; ".join(f"{each['task']} ({', '.join(each['datasets'])})" for each in entry["tasks"])
        return [entry["name"], entry["source"], does, entry["summary"]]
    if section == "tasks":
        return [entry["name"], ", ".join(entry["metrics"]), entry["summary"]]
    if section == "datasets":
        place = "needs no --data-root" if entry["embedded"] else "--data-root"
        return [entry["name"], ", ".join(entry["tasks"]), place, entry["summary"]]
    if section == "combiners":
        return [entry["name"], "learned" if entry["learned"] else "", entry["summary"]]
    if section in ("schemes", "estimators"):
        return [entry["name"], entry["summary"]]
    default = f"default for {', '.join(entry['default_for'])}" if entry["default_for"] else ""
    return [entry["name"], entry["backbone"], default, entry["summary"]]
