"""``meltr new-backbone``: writes a complete package for a backbone plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from meltr.cli.options import AsJson, registry_for
from meltr.cli.output import print_json
from meltr.kit.rendering import KINDS, render

Name = Annotated[str, typer.Argument(help="Name of the backbone, such as my-net; the package is meltr-my-net.")]
KindOption = Annotated[
    str, typer.Option(metavar="|".join(KINDS), help="What it works on.", autocompletion=lambda: list(KINDS))
]
OutputDir = Annotated[Path, typer.Option(help="Parent of the new folder.")]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("new-backbone")(new_backbone)


def new_backbone(
    ctx: typer.Context,
    name: Name,
    *,
    kind: KindOption = "plain",
    output_dir: OutputDir = Path(),
    as_json: AsJson = False,
) -> None:
    """Write a package for a backbone of your own: model, losses, adapter, preset, tests and CI. It trains at once.

    No network is needed. docs/write_a_backbone.md goes on from there.
    """
    folder = render(name, kind, output_dir, registry_for(ctx))
    words = f"meltr run --backbone {name} {KINDS[kind].words}".rstrip()
    if as_json:
        files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        print_json({"folder": folder, "kind": kind, "files": files, "run": words})
        return
    typer.echo(f"{folder}: a backbone of kind {kind}\n")
    for line in (f"cd {folder}", "pip install -e '.[test]'", "pytest", words):
        typer.echo(f"  {line}")
