"""``meltr plot``: draws losses, task weights, gradient alignments and metrics of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add ``plot`` to `app`."""
    app.command("plot")(plot)


def plot(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, or of several seeds of one.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder to write to.  [default: RUN/plots]")
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", metavar="png|pdf|svg", help="Repeat it for several.  [default: png]"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the paths as JSON.")] = False,
) -> None:
    """Draw a run, finished or not: losses, task weights, gradient alignments and metrics.

    For several seeds, draw the mean with a band of one standard deviation.
    """
    from meltr.report.plots import draw
    from meltr.report.runs import load_group

    plots = draw(load_group(run), output, formats or ["png"])
    if as_json:
        files = {name: [str(path) for path in paths] for name, paths in plots.files.items()}
        typer.echo(json.dumps({"run": str(run), "files": files, "skipped": plots.skipped}, indent=2))
        return
    for paths in plots.files.values():
        for path in paths:
            typer.echo(path)
    for name, reason in plots.skipped.items():
        typer.echo(f"no {name} plot: {reason}", err=True)
