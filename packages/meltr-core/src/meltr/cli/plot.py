"""``meltr plot``: draws losses, task weights, gradient alignments and metrics of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from meltr.errors import UserError


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
    figures: Annotated[
        list[str] | None,
        typer.Option(
            "--figure",
            metavar="3|4|7",
            help="A figure of the paper instead: 3: combined loss and task weight against each loss; 4: task weights "
            "per epoch; 7: the combined loss over two losses, beside the plain sum.  Repeat it for several.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the paths as JSON.")] = False,
) -> None:
    """Draw a run, finished or not: losses, task weights, gradient alignments and metrics.

    For several seeds, draw the mean with a band of one standard deviation. Figures 3 and 7 show the combiner of one
    run's last checkpoint; their numbers are written as CSV beside them.
    """
    from meltr.report.plots import Plots, draw
    from meltr.report.runs import load_group

    unknown = next((number for number in figures or () if number not in ("3", "4", "7")), None)
    if unknown is not None:
        raise UserError(f"--figure {unknown} is not known.", "Valid choices: 3, 4, 7.")
    plots = Plots({}, {})
    if not figures or "4" in figures:
        found = draw(load_group(run), output, formats or ["png"], only=("sensitivities",) if figures else None)
        plots.files.update(found.files)
        plots.skipped.update(found.skipped)
    if of_combiner := [number for number in figures or () if number != "4"]:
        from meltr.plugins import discover
        from meltr.report.combiner_figures import draw_combiner

        plots.files.update(draw_combiner(run, discover(), of_combiner, output=output, formats=formats or ["png"]))
    if as_json:
        files = {name: [str(path) for path in paths] for name, paths in plots.files.items()}
        typer.echo(json.dumps({"run": str(run), "files": files, "skipped": plots.skipped}, indent=2))
        return
    for paths in plots.files.values():
        for path in paths:
            typer.echo(path)
    for name, reason in plots.skipped.items():
        typer.echo(f"no {name} plot: {reason}", err=True)
