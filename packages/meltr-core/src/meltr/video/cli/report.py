"""``meltr report``: one page that says which run won, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from meltr.cli.options import AsJson, registry_for
from meltr.cli.output import print_json, remark
from meltr.errors import UserError


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("report")(report)


def report(
    ctx: typer.Context,
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Folders of runs, or of several seeds; the first is the reference."),
    ],
    *,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.html", help="The page.  [default: report.html in the first RUN]"),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(metavar="NAME", help="Metric to compare.  [default: the task's primary metric]")
    ] = None,
    split: Annotated[
        str | None, typer.Option(metavar="test|validation", help="[default: test if every run has it]")
    ] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder of the data set, for pictures of samples.")] = None,
    pictures: Annotated[bool, typer.Option(help="Show frames of the videos and images of samples.")] = True,
    as_json: AsJson = False,
) -> None:
    """Write a report of runs as one HTML page: who won, significance, cost, figures, samples, commands.

    The page needs no network. Nothing is trained, and no plugin file of a run is loaded.
    """
    page = output if output is not None else runs[0] / "report.html"
    if page.is_dir() or page.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--output {page} is not the name of an HTML file", "For example: --output report.html")
    from meltr.report.page.render import write_report
    from meltr.video.thumbnails import Stills

    picture_of = Stills(data_root) if pictures else None
    facts = write_report(runs, page, registry=registry_for(ctx), metric=metric, split=split, picture_of=picture_of)
    if as_json:
        answer = facts.answer
        said = {"question": answer.question, "headline": answer.headline, "sentences": answer.sentences}
        print_json({"page": page, "best": answer.best, **said})
        return
    remark(facts.answer.headline)
    typer.echo(page)
