"""``meltr card``: a model card of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from meltr.cli.output import remark
from meltr.errors import UserError


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("card")(card)


def card(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run with one seed.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE.md", help="Write it there instead of printing it.")
    ] = None,
) -> None:
    """Print a model card: README.md of a model repository, with results, settings and limits as metadata and text."""
    from meltr.files import write_text
    from meltr.report.card import model_card

    text = model_card(run)
    if output is None:
        typer.echo(text, nl=False)
        return
    if output.is_dir():
        raise UserError(f"--output {output} is a folder", "For example: --output README.md")
    write_text(output, text)
    remark(f"card: {output}")
