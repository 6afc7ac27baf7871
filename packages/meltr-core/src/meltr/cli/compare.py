"""``meltr compare``: a table of runs, with paired tests over their common seeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from meltr.cli.output import table
from meltr.errors import UserError


def register(app: typer.Typer) -> None:
    """Add ``compare`` to `app`."""
    app.command("compare")(compare)


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Folders of runs, or of several seeds; the first is the reference."),
    ],
    metric: Annotated[
        str | None, typer.Option(metavar="NAME", help="Metric to compare.  [default: the task's primary metric]")
    ] = None,
    split: Annotated[
        str | None, typer.Option(metavar="test|validation", help="[default: test if every run has it]")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare runs: mean ± standard deviation over seeds, difference to the first, paired tests, time, and settings.

    Runs of one configuration with different seeds become one row.
    """
    if markdown and as_json:
        raise UserError("--markdown and --json cannot be combined", "Use one of them.")
    from meltr.files import encode
    from meltr.report.compare import compare as compare_runs
    from meltr.report.tables import legend, settings_markdown, settings_rows, to_markdown, to_rich

    comparison = compare_runs(runs, metric=metric, split=split)
    if as_json:
        typer.echo(json.dumps(encode(comparison.as_dict()), indent=2))
    elif markdown:
        typer.echo(to_markdown(comparison))
        if comparison.settings:
            typer.echo(f"\nSettings that differ:\n\n{settings_markdown(comparison)}")
    else:
        from rich.console import Console

        console = Console(highlight=False)
        console.width = max(console.width, 80)  # a narrower table would lose columns
        console.print(to_rich(comparison))
        for line in legend(comparison):
            console.print(line, markup=False)
        if comparison.settings:
            console.print("Settings that differ:")
            console.print(table(settings_rows(comparison)), markup=False, soft_wrap=True)
