"""``meltr evaluate``: evaluates a checkpoint of a finished run."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from meltr.cli.options import AllowMissing, AsJson, Trust, plugins_of_run, registry_for
from meltr.cli.output import print_json, remark, table
from meltr.errors import UserError, did_you_mean
from meltr.folders.places import set_aside
from meltr.folders.seeds_folder import SeedsFolder, spread, started_runs
from meltr.observers.text import metrics_text

SPLITS = ("test", "validation")


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("evaluate")(evaluate)


def evaluate(
    ctx: typer.Context,
    run: Annotated[Path, typer.Argument(help="Folder of a run, or of several seeds.")],
    *,
    split: Annotated[str, typer.Option(help="test or validation.")] = "test",
    checkpoint: Annotated[str, typer.Option(help="best, last, or a name such as step-000500.")] = "best",
    data_root: Annotated[Path | None, typer.Option(help="Folder of the data set, if it has moved.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:0, mps; default: the run's.")] = None,
    plugin: Annotated[list[Path] | None, typer.Option(help="Python file with a plugin, if it has moved.")] = None,
    trust: Trust = False,
    allow_missing: AllowMissing = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate a checkpoint on the test or the validation split."""
    from meltr.engine.run import evaluate_run

    if split not in SPLITS:
        raise UserError(f"there is no split {split!r}", did_you_mean(split, SPLITS))
    aside = set_aside(run)
    if aside is not None:
        remark(f"the run that {run} replaces is in {aside}, until {run} has a checkpoint or results")
    results = []
    for folder in started_runs(run):
        registry = registry_for(ctx, plugins_of_run(folder.path, folder.read_spec().plugins, plugin, trust=trust))
        with contextlib.redirect_stdout(sys.stderr):
            result = evaluate_run(
                folder.path,
                registry=registry,
                split=split,
                checkpoint=checkpoint,
                device=device,
                data_root=data_root,
                allow_missing=allow_missing,
                say=remark,
            )
        results.append({"run_dir": str(folder.path), **result})
    several = SeedsFolder(run).seeds is not None
    if as_json:
        print_json(_together(results) if several else results[0])
        return
    for result in results:
        typer.echo(f"{result['run_dir']}: {split} split, checkpoint {result['checkpoint']}, {result['count']} examples")
        for reason in result.get("skipped_item_reasons", ()):
            remark(f"skipped {reason}")
        skipped = [[name, f"skipped ({reason})"] for name, reason in result.get("skipped", {}).items()]
        typer.echo(table([*([name, f"{value:.4g}"] for name, value in result["metrics"].items()), *skipped]))
        for name, metrics in result.get("baselines", {}).items():
            typer.echo(f"  {name}: {metrics_text(metrics)}")
    if several:
        rows = [[name, f"{m['mean']:.4g} ± {m['std']:.2g}"] for name, m in _together(results)["metrics"].items()]
        typer.echo(f"{run}: mean ± std of {len(results)} seeds")
        typer.echo(table(rows))


def _together(results: list[dict[str, Any]]) -> Mapping[str, Any]:
    return {"metrics": spread(results), "runs": results}
