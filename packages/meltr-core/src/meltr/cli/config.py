"""``meltr config``: the settings of a run, and the list of all settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from meltr.cli import options as opt
from meltr.cli.options import Selection, registry_for
from meltr.cli.output import print_json, table
from meltr.settings import dump_yaml


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    group = typer.Typer(name="config", help="Show settings.", no_args_is_help=True)
    group.command("show")(show)
    group.command("schema")(schema)
    app.add_typer(group, name="config")


def show(
    ctx: typer.Context,
    *,
    backbone: opt.Backbone = None,
    task: opt.Task = None,
    dataset: opt.Dataset = None,
    combiner: opt.Combiner = None,
    preset: opt.Preset = None,
    plugin: opt.Plugin = None,
    config: opt.Config = None,
    sets: opt.Set = None,
    fidelity: opt.Fidelity = None,
    seed: opt.Seed = None,
    epochs: opt.Epochs = None,
    batch_size: opt.BatchSize = None,
    lr: opt.Lr = None,
    data_root: opt.DataRoot = None,
    download: opt.Download = False,
    allow_missing: opt.AllowMissing = False,
    sample: opt.Sample = False,
    device: opt.Device = None,
    as_json: opt.AsJson = False,
) -> None:
    """Show the complete settings of a run, as in its run.yaml."""
    selection = Selection.of(locals())
    spec = selection.resolve(registry_for(ctx, selection.plugin_files()))
    if as_json:
        print_json(spec.model_dump(mode="json"))
    else:
        typer.echo(dump_yaml(spec), nl=False)


def schema(
    ctx: typer.Context,
    *,
    backbone: Annotated[str | None, typer.Option(help="Include the settings of this backbone.")] = None,
    combiner: Annotated[str | None, typer.Option(help="Include the settings of this combiner; default: meltr.")] = None,
    scheme: Annotated[
        str | None, typer.Option(help="Include the settings of this scheme; default: aid-fp-lite.")
    ] = None,
    estimator: Annotated[
        str | None, typer.Option(help="Include the settings of this estimator; default: auto.")
    ] = None,
    plugin: Annotated[list[Path] | None, typer.Option(help="Python file with a plugin; may be repeated.")] = None,
    as_json: opt.AsJson = False,
) -> None:
    """List every setting with its type, default and meaning."""
    from meltr.cli._schema import describe_settings

    rows = describe_settings(
        registry_for(ctx, plugin or ()), backbone, combiner=combiner, scheme=scheme, estimator=estimator
    )
    if as_json:
        print_json([row._asdict() for row in rows])
    else:
        typer.echo(
            table([["setting", "default", "type", "meaning"], *([r.path, r.default, r.type, r.help] for r in rows)])
        )
