"""``meltr bench``: the cost of a training step with every scheme and estimator (Table 8 of the paper)."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from meltr.cli import options as opt
from meltr.cli._measuring import learned_spec, one_process, quiet_profiler
from meltr.cli.options import Selection
from meltr.cli.output import print_json, remark, table
from meltr.errors import UserError
from meltr.files import encode, write_text
from meltr.plugins import Registry
from meltr.settings import resolve
from meltr.specs import RunSpec

if TYPE_CHECKING:
    from meltr.bench.approximations import Approximations
    from meltr.bench.table8 import Table8
    from meltr.verify.variants import Variant

_WHAT = "What to measure"
_OUTPUT = "Output"

CaseNames = Annotated[
    list[str] | None,
    typer.Option(
        "--case", metavar="NAME", help="A case of core or of a backbone; may be repeated.", rich_help_panel=_WHAT
    ),
]
List = Annotated[bool, typer.Option("--list", help="List the cases and the variants.", rich_help_panel=_WHAT)]
Variants = Annotated[
    str | None, typer.Option(metavar="A,B,...", help="Only these variants; default: all.", rich_help_panel=_WHAT)
]
Approximate = Annotated[
    bool,
    typer.Option(
        "--approximations",
        help="Measure cheaper outer steps instead: their cost, and their g during a short training run.",
        rich_help_panel=_WHAT,
    ),
]
Steps = Annotated[int, typer.Option(min=1, help="Training steps of --approximations.", rich_help_panel=_WHAT)]
Turns = Annotated[int, typer.Option("--repeat", min=1, help="Timings per variant.", rich_help_panel=_WHAT)]
Precision = Annotated[str | None, typer.Option(help="Short for --set train.precision=...", rich_help_panel="Settings")]
Compile = Annotated[
    bool, typer.Option("--compile", help="Short for --set train.compile=true.", rich_help_panel="Settings")
]
Json = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE|-", help="Write all numbers as JSON; -: print them.", rich_help_panel=_OUTPUT),
]
Plot = Annotated[
    Path | None,
    typer.Option(metavar="FILE.png", help="Draw time and memory, or time and signs of g.", rich_help_panel=_OUTPUT),
]
Markdown = Annotated[
    str | None,
    typer.Option(
        metavar="FILE[#NAME]",
        help="Insert the tables into this page, between <!-- meltr bench: begin --> and its end.",
        rich_help_panel=_OUTPUT,
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("bench")(bench)


def bench(
    ctx: typer.Context,
    *,
    case: CaseNames = None,
    list_cases: List = False,
    variants: Variants = None,
    turns: Turns = 5,
    approximations: Approximate = False,
    steps: Steps = 60,
    backbone: opt.Backbone = None,
    task: opt.Task = None,
    dataset: opt.Dataset = None,
    combiner: opt.Combiner = None,
    preset: opt.Preset = None,
    plugin: opt.Plugin = None,
    config: opt.Config = None,
    sets: opt.Set = None,
    seed: opt.Seed = None,
    batch_size: opt.BatchSize = None,
    precision: Precision = None,
    compiled: Compile = False,
    data_root: opt.DataRoot = None,
    sample: opt.Sample = False,
    device: opt.Device = None,
    json_to: Json = None,
    plot: Plot = None,
    markdown: Markdown = None,
) -> None:
    """Measure the cost of training relative to multi-task learning.

    Without --case and --backbone, the small cases of the installed plugins run. Every variant takes whole cycles of K
    training steps that include one outer step.
    """
    from meltr.bench.cases import registry_with_cases

    one_process()
    selection = Selection.of(
        {**dict.fromkeys(("fidelity", "epochs", "lr")), "download": False, "allow_missing": False, **locals()}
    )
    registry = registry_with_cases(selection.plugin_files())
    if list_cases:
        return _list(registry)
    flags = {"train.precision": precision, "train.compile": compiled or None}
    specs = _specs(registry, selection, case or (), flags)
    _check_plot(plot)
    chosen = {title: _choose(spec, registry, variants, approximations=approximations) for title, spec in specs.items()}
    quiet_profiler()
    results = [
        _measured(registry, title, spec, variants=chosen[title], turns=turns, steps=steps if approximations else None)
        for title, spec in specs.items()
    ]
    _write(results, json_to=json_to, plot=plot, markdown=markdown)


def _list(registry: Registry) -> None:
    """Print the cases and the variants."""
    from meltr.bench.cases import all_cases, resolve_case
    from meltr.verify.variants import all_approximations, all_variants

    cases = all_cases(registry)
    typer.echo("cases (* runs if no case is named):")
    typer.echo(table([[f"{'*' if c.info.default else ' '} {name}", c.info.summary] for name, c in cases.items()]))
    some = resolve_case(registry, next(iter(cases.values())), flags={})
    for title, known in (
        ("variants", all_variants(some, registry)),
        ("with --approximations", all_approximations(some)),
    ):
        typer.echo(f"{title}:")
        typer.echo(table([[each.name, each.summary] for each in known.values()]))


def _specs(registry: Registry, selection: Selection, cases: Sequence[str], flags: dict[str, Any]) -> dict[str, RunSpec]:
    """Return the runs to measure, by title.

    Raises:
        UserError: If there is no such case, or both cases and a run are given.
    """
    from meltr.bench.cases import pick, resolve_case

    given = {key: value for key, value in {**selection.flags(), **flags}.items() if value is not None}
    own = {"backbone", "task", "dataset"} & given.keys() or selection.config is not None
    if own:
        if cases:
            raise UserError("--case and a run of your own cannot be combined", "Remove --backbone or --case.")
        spec = resolve(
            registry, config=selection.config, flags=given, sets=selection.sets, plugins=selection.plugin_files()
        )
        return {f"{spec.backbone} / {spec.task} / {spec.dataset}": learned_spec(registry, spec)}
    return {
        case.name: learned_spec(registry, resolve_case(registry, case, flags=given, sets=selection.sets))
        for case in pick(registry, cases)
    }


def _choose(spec: RunSpec, registry: Registry, names: str | None, *, approximations: bool) -> dict[str, Variant]:
    """Return the variants to measure.

    Raises:
        UserError: If a name is unknown.
    """
    from meltr.verify import variants

    return variants.choose_approximations(spec, names) if approximations else variants.choose(spec, registry, names)


def _measured(
    registry: Registry, title: str, spec: RunSpec, *, variants: dict[str, Variant], turns: int, steps: int | None
) -> Table8 | Approximations:
    """Measure one case; output of plugins goes to standard error."""
    from meltr.bench.approximations import compare
    from meltr.bench.table8 import measure
    from meltr.verify.fixed_run import FixedRun

    def log(line: str) -> None:
        remark(f"... {line}")

    with contextlib.redirect_stdout(sys.stderr):
        remark(f"{title}: {len(variants)} variants")
        run = FixedRun(spec, registry)
        if steps is None:
            return measure(run, variants, title=title, turns=turns, log=log)
        return compare(run, variants, title=title, steps=steps, turns=turns, log=log)


def _check_plot(plot: Path | None) -> None:
    """Check, before measuring, that a requested plot can be drawn.

    Raises:
        UserError: If matplotlib is missing or the format is unknown.
    """
    if plot is None:
        return
    from meltr.report import style

    style.require_matplotlib()
    style.check_formats([plot.suffix.removeprefix(".")])


def _write(
    results: Sequence[Table8 | Approximations], *, json_to: str | None, plot: Path | None, markdown: str | None
) -> None:
    """Print the tables and write the requested files."""
    from meltr.bench.approximations import Approximations
    from meltr.bench.markdown import APPROXIMATION_LEGEND, LEGEND, page, update
    from meltr.bench.table8 import circumstances
    from meltr.verify.variants import DEFAULT

    tables = [result.table if isinstance(result, Approximations) else result for result in results]
    table8 = tables == list(results)
    where = circumstances(tables[0].run["device"])
    content = {**where, "cases": [result.as_dict() for result in results]}
    legend = LEGEND.format(first=DEFAULT) if table8 else APPROXIMATION_LEGEND
    text = page(results, where, legend=legend)
    if json_to == "-":
        print_json(content)
    else:
        typer.echo(text, nl=False)
    if json_to not in (None, "-"):
        write_text(Path(str(json_to)), json.dumps(encode(content), indent=2, ensure_ascii=False) + "\n")
        remark(f"numbers: {json_to}")
    if plot is not None:
        from meltr.bench.plot import draw, draw_approximations

        approximations = [result for result in results if isinstance(result, Approximations)]
        if approximations:
            draw_approximations(approximations, plot)
        else:
            draw(tables, plot, caption=f"; blue: schemes; orange: ways to compute {DEFAULT}")
        remark(f"plot: {plot}")
    if markdown is not None:
        remark(f"tables: {update(markdown, text)}")
