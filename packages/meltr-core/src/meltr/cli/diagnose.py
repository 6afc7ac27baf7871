"""``meltr diagnose``: tells for every auxiliary loss whether it helps, by short trainings with and without it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from meltr.cli import options as opt
from meltr.cli._measuring import one_process, quiet_profiler
from meltr.cli.options import Selection, plugins_of_run, registry_for
from meltr.cli.output import print_json, remark, table
from meltr.errors import UserError
from meltr.folders.places import next_name
from meltr.folders.run_folder import RunFolder
from meltr.folders.seeds_folder import started_runs
from meltr.report.diagnosis import NAME

if TYPE_CHECKING:
    from meltr.diagnosis.diagnosis import Diagnosis
    from meltr.plugins import Registry
    from meltr.specs import RunSpec

_HOW, _OUTPUT = "How to measure", "Output"

NEW = "new"
"""The value of ``--from`` for branches with new weights."""

Run = Annotated[Path | None, typer.Argument(help="Folder of a run; or choose what to train with --backbone ...")]
Steps = Annotated[
    int | None,
    typer.Option(min=1, help="Steps of a branch; default: those of the run, at most 500.", rich_help_panel=_HOW),
]
Branches = Annotated[int, typer.Option(min=2, help="Repetitions.", rich_help_panel=_HOW)]
Looks = Annotated[int, typer.Option(min=1, help="How often a branch is scored.", rich_help_panel=_HOW)]
Weight = Annotated[float, typer.Option(help="Weight of every auxiliary loss in the sum.", rich_help_panel=_HOW)]
HeldOut = Annotated[
    float | None,
    typer.Option(min=0.0, help="Fraction or number of training examples to score on.", rich_help_panel=_HOW),
]
From = Annotated[
    str,
    typer.Option(
        "--from",
        metavar="WHERE",
        help="'new': new weights in every branch; best, last or step-N: a checkpoint of RUN.",
        rich_help_panel=_HOW,
    ),
]
OutputDir = Annotated[
    Path, typer.Option(help="Parent of the folder with diagnose.json, without RUN.", rich_help_panel=_OUTPUT)
]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("diagnose")(diagnose)


def diagnose(
    ctx: typer.Context,
    run: Run = None,
    *,
    backbone: opt.Backbone = None,
    task: opt.Task = None,
    dataset: opt.Dataset = None,
    preset: opt.Preset = None,
    plugin: opt.Plugin = None,
    trust: opt.Trust = False,
    config: opt.Config = None,
    sets: opt.Set = None,
    seed: opt.Seed = None,
    batch_size: opt.BatchSize = None,
    lr: opt.Lr = None,
    data_root: opt.DataRoot = None,
    download: opt.Download = False,
    allow_missing: opt.AllowMissing = False,
    sample: opt.Sample = False,
    device: opt.Device = None,
    steps: Steps = None,
    branches: Branches = 6,
    looks: Looks = 12,
    weight: Weight = 1.0,
    held_out: HeldOut = None,
    start: From = NEW,
    output_dir: OutputDir = Path("runs"),
    as_json: opt.AsJson = False,
) -> None:
    """Tell whether each auxiliary loss helps the primary one, and write diagnose.json.

    Short trainings with and without each loss are compared on held-out examples. See docs/diagnose.md for how often
    the verdicts are right.
    """
    one_process()
    quiet_profiler()
    if run is not None:
        given = (backbone, task, dataset, preset, config, sets, seed, batch_size, lr, sample or None)
        if any(given):
            raise UserError("RUN has its own settings", "Leave out --backbone, --set and the like, or leave out RUN.")
        folder = _one_run(run)
        stored = folder.read_spec()
        registry = registry_for(ctx, plugins_of_run(folder.path, stored.plugins, plugin, trust=trust))
        changes = {"device": device or stored.device, **({"data_root": data_root} if data_root else {})}
        spec, target = stored.model_copy(update=changes), folder.path / NAME
    else:
        if start != NEW:
            raise UserError(f"--from {start} needs a run", f"meltr diagnose RUN --from {start}")
        rest = {"combiner": "sum", "fidelity": None, "epochs": None}
        selection = Selection.of({**locals(), **rest})
        registry = registry_for(ctx, selection.plugin_files())
        spec = selection.resolve(registry)
        target = _free(output_dir / f"{spec.backbone}-{spec.task}-{spec.dataset}-diagnose") / NAME
    with contextlib.redirect_stdout(sys.stderr):
        found = _found(registry, spec, run, start, held_out, (steps, branches, looks), weight, quiet=as_json)
    found.save(target)
    if as_json:
        print_json(found.as_dict())
    else:
        _show(found, target)


def _found(
    registry: Registry,
    spec: RunSpec,
    run: Path | None,
    start: str,
    held_out: float | None,
    budget: tuple[int | None, int, int],
    weight: float,
    *,
    quiet: bool,
) -> Diagnosis:
    """Diagnose a run.

    Raises:
        UserError: If its checkpoint has been trained on the examples that would be held out.
    """
    from meltr.diagnosis.diagnosis import checked, of_subject
    from meltr.diagnosis.of_run import RunSubject, steady

    if start != NEW and (spec.bilevel.outer_batch != "held_out" or held_out is not None):
        raise UserError(
            f"--from {start}: the checkpoint was trained on the examples that would be held out",
            "Use --from new; or train with --set outer_batch=held_out, and leave --held-out out.",
        )

    def log(line: str) -> None:
        if not quiet:
            remark(f"... {line}")

    folder = run if start != NEW else None
    subject = RunSubject(
        steady(registry, spec, held_out=held_out), registry, weight=weight, folder=folder, checkpoint=start
    )
    steps, branches, looks = budget
    allowed = checked(subject.default_steps if steps is None else steps, branches, looks)
    words = "new weights in every branch" if folder is None else f"checkpoint {start} of {folder.name}"
    return of_subject(subject, allowed, start=words, log=log)


def _one_run(path: Path) -> RunFolder:
    """Return the only run in a folder.

    Raises:
        UserError: If it holds several seeds, or none.
    """
    runs = started_runs(path)
    if len(runs) > 1:
        raise UserError(f"{path} holds {len(runs)} seeds", f"Name one of them: meltr diagnose {runs[0].path}")
    return runs[0]


def _free(folder: Path) -> Path:
    """Return a folder that does not exist yet."""
    while folder.exists():
        folder = next_name(folder)
    return folder


def _show(found: Diagnosis, target: Path) -> None:
    """Print the sentences, a table of the numbers, and the settings that follow."""
    for each in found.verdicts:
        typer.echo(each.sentence)
    typer.echo(table(_rows(found), indent=""))
    typer.echo(f"{found.budget.branches} branches of {found.budget.steps} steps, from {found.start}")
    typer.echo(f"settings: {found.settings}")
    remark(f"wrote {target}")


def _rows(found: Diagnosis) -> Sequence[Sequence[str]]:
    rows = [["loss", "effect", "p", "beside the others", "alignment", "noise of g", "time", "memory"]]
    for each in found.verdicts:
        rows.append(
            [
                each.task,
                f"{each.effect.mean:+.3g}",
                "-" if each.p is None else f"{each.p:.2g}",
                "-" if each.company is None else f"{each.company.mean:+.3g}",
                f"{each.alignment.mean:+.3f}"
                + ("" if each.alignment.low is None else f" ({each.alignment.low:+.3f} to {each.alignment.high:+.3f})"),
                f"{each.noise:.1f}",
                f"{each.time:.2f}",
                "-" if each.memory is None else f"{each.memory:.2f}",
            ]
        )
    return rows
