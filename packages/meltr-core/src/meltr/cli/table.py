"""``meltr table``: a table of the paper from runs, beside the paper's figures."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from meltr.cli import options as opt
from meltr.cli._measuring import learned_spec, one_process, quiet_profiler
from meltr.cli._pieces import Outcome
from meltr.cli._sweep_results import finished
from meltr.cli.options import registry_for
from meltr.cli.output import print_json, remark
from meltr.cli.sweep import given_for
from meltr.errors import UserError, did_you_mean
from meltr.files import encode, read_object, write_json, write_text
from meltr.plugins import Registry
from meltr.recipes import RecipeInfo, all_recipes
from meltr.report.paper_tables import PaperTable, gather, to_sheet
from meltr.report.sheets import FORMATS, SUFFIXES, Sheet, to_rich, written
from meltr.report.table8 import CASE, measured, row_names, to_sheet8
from meltr.sweeps.pieces import pieces_of
from meltr.sweeps.plan import Sweep, points_of

Number = Annotated[int, typer.Argument(metavar="N", min=1, max=12, help="Number of the table.")]
Runs = Annotated[Path, typer.Option("--runs", metavar="DIR", help="Where the runs lie, at any depth.")]
Seeds = Annotated[str | None, typer.Option("--seed", help="Seeds that a row should have; default: 0,1,2; sample: 0,1.")]
Jobs = Annotated[int, typer.Option(min=1, help="With --sample: runs at once.")]
Form = Annotated[str | None, typer.Option("--format", metavar="FORM", help=f"{', '.join(FORMATS)}.")]
Out = Annotated[Path | None, typer.Option(metavar="FILE", help="Write it there: .md, .html or .tex.")]
Sample = Annotated[bool, typer.Option("--sample", help="First run every row in miniature; no data, no GPU.")]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("table")(table)


def table(
    ctx: typer.Context,
    number: Number,
    *,
    sample: Sample = False,
    runs: Runs = Path("runs"),
    seed: Seeds = None,
    jobs: Jobs = 1,
    form: Form = None,
    out: Out = None,
    as_json: opt.AsJson = False,
) -> None:
    """Show a table of the paper with our figures beside it; a missing cell names the command that fills it."""
    form = _form(form, out)
    registry = registry_for(ctx)
    seeds = opt.Selection(seed=seed or ("0,1" if sample else "0,1,2")).seeds() or [0]
    failed = False
    if number == 8:
        sheet, content = _table8(registry, runs, sample=sample)
    else:
        if sample:
            failed = bool(_run_missing(registry, number, runs, seeds, jobs=jobs).failed)
        found = gather(registry, number, runs, sample=sample)
        sheet, content = to_sheet(found, seeds), _content(found)
    if as_json:
        print_json(content)
    else:
        _show(sheet, form, out)
    if failed:
        raise typer.Exit(1)


def _form(form: str | None, out: Path | None) -> str:
    """Return the format that was asked for, by name or by the ending of the file."""
    if form is None and out is not None:
        if out.suffix not in SUFFIXES:
            hint = f"Use an ending of {', '.join(SUFFIXES)}, or add --format."
            raise UserError(f"the format of {out} is not known", hint)
        form = SUFFIXES[out.suffix]
    form = form or "terminal"
    if form not in FORMATS:
        raise UserError(f"there is no format {form!r}", did_you_mean(form, FORMATS))
    if form == "terminal" and out is not None:
        raise UserError("--format terminal cannot be written to a file", "Use markdown, html or latex.")
    return form


def _run_missing(registry: Registry, number: int, runs: Path, seeds: list[int], *, jobs: int) -> Outcome:
    """Run every row in miniature, in the folder that ``meltr sweep tableN --sample`` uses."""
    lines = gather(registry, number, runs, sample=True).lines
    plan = Sweep(name=f"table{number}", grid={"recipe": tuple(line.recipe.name for line in lines)}, seeds=tuple(seeds))
    given = given_for(plan, runs, data_root=None, sample=True, device=None)
    return finished(registry, pieces_of(registry, plan, points_of(plan), given), jobs=jobs)


def _content(found: PaperTable) -> dict[str, object]:
    rows = [
        {
            "recipe": line.recipe.name,
            "paper": line.recipe.paper.model_dump(mode="json") if line.recipe.paper else None,
            "runs": {str(seed): str(folder) for seed, folder in line.runs.items()},
            "values": line.values,
            "begun": [str(folder) for folder in line.begun],
        }
        for line in found.lines
    ]
    return {"table": found.number, "sample": found.sample, "rows": rows, "notes": found.notes}


def _show(sheet: Sheet, form: str, out: Path | None) -> None:
    if form != "terminal":
        text = written(sheet, form)
        if out is None:
            typer.echo(text, nl=False)
        else:
            write_text(out, text)
            remark(f"table: {out}")
        return
    from rich.console import Console

    console = Console(highlight=False)
    console.width = max(console.width, 80)  # a narrower table would lose columns
    console.print(sheet.title, markup=False)
    console.print(to_rich(sheet))
    for note in sheet.notes:
        console.print(note, markup=False)
    for what, command in sheet.commands:
        typer.echo(f"{what}: {command}")  # not wrapped, so that it can be copied


def _table8(registry: Registry, runs: Path, *, sample: bool) -> tuple[Sheet, dict[str, object]]:
    """Return Table 8 from the file of ``meltr bench``; with `sample`, measure a small transformer of core first."""
    recipes = all_recipes(registry, 8)
    file = runs / ("table8-sample.json" if sample else "table8.json")
    content = read_object(file)
    if content is None and sample:
        content = _bench(recipes)
        write_json(file, content)
        remark(f"numbers: {file}")
    return to_sheet8(recipes, content, file, sample=sample), {
        "table": 8,
        "sample": sample,
        "rows": measured(content, recipes),
    }


def _bench(recipes: list[RecipeInfo]) -> dict[str, object]:
    """Measure the schemes of the table on the small case of core."""
    one_process()
    quiet_profiler()
    from meltr.bench.cases import all_cases, registry_with_cases, resolve_case
    from meltr.bench.table8 import circumstances, measure
    from meltr.verify import variants
    from meltr.verify.fixed_run import FixedRun

    registry = registry_with_cases([])
    spec = learned_spec(registry, resolve_case(registry, all_cases(registry)[CASE], flags={"device": "cpu"}))
    chosen = variants.choose(spec, registry, ",".join(row_names(recipes)))
    with contextlib.redirect_stdout(sys.stderr):
        found = measure(FixedRun(spec, registry), chosen, title=CASE, turns=3, log=lambda line: remark(f"... {line}"))
    content: dict[str, object] = encode({**circumstances(spec.device), "cases": [found.as_dict()]})
    return content
