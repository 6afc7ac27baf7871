"""``meltr verify``: checks that the hypergradients of a run's losses are right, and measures their cost."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from meltr.cli import options as opt
from meltr.cli._measuring import learned_spec, one_process, quiet_profiler
from meltr.cli.options import Selection, registry_for
from meltr.cli.output import print_json, remark

if TYPE_CHECKING:
    from meltr.verify.verification import Verification

Tolerance = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        help="Relative error allowed for every estimator; default: 1e-2 for differences, 1e-3 for the others, ten and "
        "fifty times that in low precision.",
    ),
]
Turns = Annotated[int, typer.Option("--repeat", min=1, help="Timings per kind of step.")]
Float64 = Annotated[bool, typer.Option("--float64/--no-float64", help="Compare the oracle with itself in float64.")]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("verify")(verify)


def verify(
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
    tolerance: Tolerance = None,
    turns: Turns = 3,
    float64: Float64 = True,
    as_json: opt.AsJson = False,
) -> None:
    """Check a backbone's losses on a real batch: every estimator and scheme against an exact one.

    Exit code 1 if the losses are not repeatable or a result is wrong.
    """
    selection = Selection.of(locals())
    one_process()
    registry = registry_for(ctx, selection.plugin_files())
    spec = learned_spec(registry, selection.resolve(registry))
    quiet_profiler()
    from meltr.verify.fixed_run import FixedRun
    from meltr.verify.verification import verify as check

    def log(line: str) -> None:
        if not as_json:
            remark(f"... {line}")

    with contextlib.redirect_stdout(sys.stderr):
        found = check(FixedRun(spec, registry), tolerance=tolerance, turns=turns, float64=float64, log=log)
    if as_json:
        print_json(found.as_dict())
    else:
        _show(found)
    if found.problems:
        raise typer.Exit(1)


def _show(found: Verification) -> None:
    """Print the findings as tables, and the verdict as the last line."""
    from rich.console import Console

    from meltr.verify.show import estimator_table, scheme_table

    run = found.run
    console = Console(highlight=False, soft_wrap=False)
    console.width = max(console.width, int(os.environ.get("COLUMNS", "100")))

    def print_line(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    print_line(
        f"{run['backbone']} / {run['task']} / {run['dataset']}  losses {', '.join(run['losses'])}  batch "
        f"{run['batch_size']}  {run['precision']}  {run['device']}"
    )
    for check in found.checks:
        print_line(f"{check.status.upper():<4}  {check.name}: {check.found}")
    oracle = f"exact: {found.oracle}" + (f" ({found.oracle_cause})" if found.oracle_cause else "")
    off = found.float64 if isinstance(found.float64, str) else f"off by {found.float64:.1e}"
    print_line(f"{oracle}; against float64: {off}")
    print_line("g  " + "  ".join(f"{name} {value:+.4g}" for name, value in found.exact.items()))
    console.print(estimator_table(found))
    console.print(scheme_table(found))
    memory = "" if found.mib is None else f", {found.mib:.1f} MiB"
    print_line(
        f"time and memory: of a step with an outer step; 1 is a plain step ({found.milliseconds:.1f} ms{memory})"
    )
    print_line(_verdict(found))


def _verdict(found: Verification) -> str:
    if found.problems:
        return f"FAILED: {'; '.join(found.problems)}"
    able = [row for row in found.estimators if row.used is not None and row.name != "auto"]
    return f"OK: {len(able)} of {len(found.estimators) - 1} estimators work here and agree"
