"""``meltr sweep``: many runs from one file; those that are there are not run again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from meltr.cli import options as opt
from meltr.cli._pieces import Outcome
from meltr.cli._sweep_results import best, finished, shown, summary
from meltr.cli.options import registry_for
from meltr.cli.output import print_json, remark, table
from meltr.errors import UserError, did_you_mean
from meltr.plugins import Registry
from meltr.sweeps.pieces import Given, Piece, pieces_of
from meltr.sweeps.plan import Sweep, load_sweep, points_of

FORMS = ("commands", "torchrun", "slurm")
"""What ``--print`` can print."""

File = Annotated[
    str, typer.Argument(metavar="FILE", help="YAML file of the sweep, or the name of one that is shipped.")
]
Runs = Annotated[Path, typer.Option("--runs", metavar="DIR", help="Parent of the sweep's folder.")]
Name = Annotated[str | None, typer.Option(help="Name of the sweep's folder; default: that of the file.")]
Jobs = Annotated[int, typer.Option(min=1, help="Runs at once; 1: in this process, more: a process each.")]
Seeds = Annotated[str | None, typer.Option("--seed", help="Seeds instead of those in the file: 0,1,2.")]
Trials = Annotated[int | None, typer.Option(min=1, help="Points of a search, those done before included.")]
Print = Annotated[
    str | None, typer.Option("--print", metavar="FORM", help=f"Print what is missing and stop: {', '.join(FORMS)}.")
]
Processes = Annotated[int, typer.Option("--nproc-per-node", min=1, help="Of --print torchrun.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="List the runs with their state, and stop.")]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("sweep")(sweep)


def sweep(
    ctx: typer.Context,
    file: File,
    *,
    runs: Runs = Path("runs"),
    name: Name = None,
    seed: Seeds = None,
    jobs: Jobs = 1,
    trials: Trials = None,
    data_root: opt.DataRoot = None,
    sample: opt.Sample = False,
    device: opt.Device = None,
    plugin: opt.Plugin = None,
    print_as: Print = None,
    nproc: Processes = 1,
    dry_run: DryRun = False,
    as_json: opt.AsJson = False,
) -> None:
    """Run a grid of settings and seeds, or search for the best settings; a killed sweep goes on where it stopped."""
    if print_as is not None and print_as not in FORMS:
        raise UserError(f"--print {print_as!r} is not known", did_you_mean(print_as, FORMS))
    registry = registry_for(ctx, plugin or ())
    plan = load_sweep(file, registry)
    plan = plan.model_copy(update={key: value for key, value in (("name", name), ("seeds", _seeds(seed))) if value})
    given = given_for(plan, runs, data_root=data_root, sample=sample, device=device, plugins=tuple(plugin or ()))
    if plan.search:
        if print_as or dry_run:
            raise UserError("a search has no list of runs: each point depends on the earlier ones", "Just run it.")
        from meltr.cli._search import search

        search(registry, plan, given, trials=trials or plan.trials, jobs=jobs, as_json=as_json)
        return
    if trials is not None:
        raise UserError("--trials is for a search", f"{file} is a grid: it has all its points.")
    pieces = pieces_of(registry, plan, points_of(plan), given)
    if print_as is not None or dry_run:
        _print(plan, pieces, print_as, nproc=nproc)
        return
    conclude(registry, plan, given, pieces, finished(registry, pieces, jobs=jobs), as_json=as_json)


def given_for(
    plan: Sweep, runs: Path, *, data_root: Path | None, sample: bool, device: str | None, plugins: tuple[Path, ...] = ()
) -> Given:
    """Return what the user gives to all runs, with the sweep's folder: ``NAME``, or ``NAME-sample``."""
    if sample and data_root is not None:
        raise UserError("--sample and --data-root cannot be combined", "Remove one of them.")
    root = runs / (f"{plan.name}-sample" if sample else plan.name)
    return Given(root, data_root, sample, device, plugins)


def _seeds(text: str | None) -> tuple[int, ...] | None:
    seeds = opt.Selection(seed=text).seeds()
    return None if seeds is None else tuple(seeds)


def conclude(
    registry: Registry, plan: Sweep, given: Given, pieces: Sequence[Piece], outcome: Outcome, *, as_json: bool
) -> None:
    """Print the results, and end with exit code 1 if a run failed."""
    rows = summary(pieces)
    chosen = best(registry, pieces, rows)
    if as_json:
        failed = {str(piece.folder): cause for piece, cause in outcome.failed}
        print_json({"sweep": plan.name, "folder": str(given.root), "points": rows, "best": chosen, "failed": failed})
    else:
        typer.echo(shown(rows))
        if chosen is not None:
            folder = given.root / str(chosen["point"])
            typer.echo(f"best on validation: {chosen['point']}, {chosen['value']:.4g}, in {shlex.quote(str(folder))}")
        if len(rows) > 1:
            typer.echo(f"paired tests: meltr compare {shlex.quote(str(given.root))}/*/")
    for piece in outcome.busy:
        remark(f"{piece.name} is being run by another process")
    for piece, cause in outcome.failed:
        remark(f"failed: {piece.name}: {cause}")
    if outcome.failed:
        raise typer.Exit(1)


def _print(plan: Sweep, pieces: Sequence[Piece], form: str | None, *, nproc: int) -> None:
    states = [(piece, piece.state()) for piece in pieces]
    if form is None:
        typer.echo(table([[state, piece.name, str(piece.folder)] for piece, state in states], indent=""))
        return
    commands = [piece.command(begun=state == "begun") for piece, state in states if state != "done"]
    if form == "torchrun":
        start = f"torchrun --standalone --nproc-per-node {nproc} -m meltr"
        commands = [command.replace("meltr", start, 1) for command in commands]
    if not commands:
        remark("every run is there already")
    elif form == "slurm":
        typer.echo(slurm_script(plan.name, commands))
    else:
        typer.echo("\n".join(commands))


def slurm_script(name: str, commands: Sequence[str]) -> str:
    """Return a script for ``sbatch`` with one task of an array per command."""
    cases = "\n".join(f"  {number}) {command} ;;" for number, command in enumerate(commands))
    return f"""#!/usr/bin/env bash
#SBATCH --job-name={name}
#SBATCH --array=0-{len(commands) - 1}
#SBATCH --output={name}-%a.log
# Add what your cluster needs: partition, time, GPUs, memory.
set -euo pipefail
case "$SLURM_ARRAY_TASK_ID" in
{cases}
esac"""
