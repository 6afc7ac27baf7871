"""``meltr helps``: which way to weigh losses helps on beds where it is known what the auxiliary losses do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from meltr.cli._measuring import one_process
from meltr.cli.output import remark, table
from meltr.errors import UserError

if TYPE_CHECKING:
    from meltr.helps.record import Record

QUICK = ("primary", "sum", "fixed 0.1", "fixed 0.3", "fixed 3", "sum, other order", "meltr, shares", "race")
"""The methods of a first look: a few minutes on two cores."""

_WHAT, _OUTPUT = "What to compare", "Output"

Beds = Annotated[
    list[str] | None,
    typer.Option(
        "--bed",
        metavar="NAME",
        help="A bed; may be repeated. Default: all whose data are there.",
        rich_help_panel=_WHAT,
    ),
]
Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        metavar="NAME",
        help="A method; may be repeated. 'all': every one. Default: those that take minutes.",
        rich_help_panel=_WHAT,
    ),
]
Seeds = Annotated[
    str,
    typer.Option(metavar="A-B", help="Seeds. Settings were chosen on 0-7; report on others.", rich_help_panel=_WHAT),
]
List = Annotated[bool, typer.Option("--list", help="List beds and methods.", rich_help_panel=_WHAT)]
Json = Annotated[
    Path | None,
    typer.Option(
        "--json", metavar="FILE", help="Keep every trial there; goes on where it stopped.", rich_help_panel=_OUTPUT
    ),
]
Markdown = Annotated[
    str | None,
    typer.Option(
        metavar="FILE[#NAME]",
        help="Put the table into this page, between <!-- meltr helps: begin --> and its end.",
        rich_help_panel=_OUTPUT,
    ),
]
Show = Annotated[
    bool, typer.Option("--show", help="Train nothing: show what --json FILE holds.", rich_help_panel=_OUTPUT)
]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("helps")(helps)


def helps(
    *,
    bed: Beds = None,
    method: Methods = None,
    seeds: Seeds = "12-19",
    list_all: List = False,
    json_to: Json = None,
    show: Show = False,
    markdown: Markdown = None,
) -> None:
    """Compare ways to weigh losses on small beds with known truth.

    On every bed it is known whether the auxiliary losses help, hurt or do not matter. A method should never be worse
    than the better of 'primary' (do not use them) and 'sum' (use them without thinking).
    """
    from meltr.helps.record import Record

    one_process()
    if list_all:
        return _list()
    if show:
        if json_to is None:
            raise UserError("--show needs a record", "Add --json FILE.")
        record = Record.load(json_to)
    else:
        record = _compared(bed or (), method or (), _numbers(seeds), json_to)
    _write(record, markdown)


def _list() -> None:
    """Print the beds and the methods."""
    from meltr.helps.catalogue import BEDS
    from meltr.helps.methods import METHODS

    typer.echo("beds, and what the auxiliary losses do:")
    kinds = {True: "real", False: "made"}
    typer.echo(table([[name, kinds[info.real], info.truth, info.summary] for name, info in BEDS.items()]))
    for name, info in BEDS.items():
        if lacks := info.missing():
            typer.echo(f"{name} is skipped: {lacks}")
    typer.echo("methods (* are compared if none is named):")
    typer.echo(table([[f"{'*' if name in QUICK else ' '} {name}"] for name in METHODS]))


def _compared(beds: Sequence[str], methods: Sequence[str], seeds: Sequence[int], path: Path | None) -> Record:
    """Train what the record lacks.

    Raises:
        UserError: If a bed or a method is unknown, or the record is of other seeds.
    """
    from meltr.bench.table8 import circumstances
    from meltr.helps.beds import check_known
    from meltr.helps.catalogue import BEDS, build
    from meltr.helps.methods import METHODS, method_named
    from meltr.helps.record import Record
    from meltr.helps.trial import train

    for name in beds:
        check_known(name, BEDS)
    wanted = list(METHODS) if "all" in methods else list(methods or QUICK)
    chosen = [method_named(name) for name in wanted]
    record = Record.begin(path, seeds, circumstances("cpu"))
    for name in beds or BEDS:
        missing = [each for each in chosen if not record.has(name, each.name)]
        if not missing:
            continue
        lacks = None if beds else BEDS[name].missing()
        if lacks:
            remark(f"{name} is skipped: {lacks}")
            continue
        data = build(name, seeds)
        remark(f"{name}: {BEDS[name].summary}")
        for each in missing:
            trial = train(data, each)
            record.add(name, each.name, trial)
            remark(f"... {each.name}: {sum(trial.test) / len(trial.test):.3f} ({trial.seconds:.0f} s)")
            if path is not None:
                record.save(path)
    return record


def _write(record: Record, markdown: str | None) -> None:
    """Print the table, and put it into a page."""
    from meltr.bench.markdown import update
    from meltr.helps import show
    from meltr.helps.verdicts import REFERENCES

    if not record.trials:
        raise UserError("the record holds no trial", "Run `meltr helps --json FILE` first.")
    rows = show.rows(record.trials)
    typer.echo(table(rows, indent=""))
    named = [row[0] for row in rows[1:-2] if row[0] not in REFERENCES]
    for line in show.summary(record.trials, [name for name in named if name.startswith("meltr")]):
        typer.echo(line)
    if markdown is not None:
        where = record.where
        head = (
            f"Measured on {where['date']} with `{where['command']}`, {len(record.seeds)} seeds ({record.seeds[0]} to "
            f"{record.seeds[-1]}), torch {where['versions']['torch']}."
        )
        path = update(markdown, show.markdown(record.trials, head), what="helps")
        remark(f"wrote {path}")


def _numbers(text: str) -> list[int]:
    """Return the seeds of ``12-43`` or ``1,5,9``.

    Raises:
        UserError: If they are not numbers, fewer than two, or one is named twice.
    """
    example = "For example: --seeds 12-43, or --seeds 12,13,14"
    found: list[int] = []
    for word in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", word)
        if match is None:
            raise UserError(f"--seeds {text!r} is not a list of numbers", example)
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first > 1000:
            raise UserError(f"--seeds {text!r}: {word.strip()} is not a range of at most 1,000 seeds", example)
        found += range(first, last + 1)
    if len(set(found)) < len(found):
        raise UserError(f"--seeds {text!r} names a seed twice", example)
    if len(found) < 2:
        raise UserError(f"--seeds {text!r}: a paired test needs at least two seeds", example)
    return found
