"""``meltr run``: trains, chooses the best checkpoint and tests it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from meltr.cli import options as opt
from meltr.cli._jobs import Job, Manner, new_job, performed, resumed_job, summary
from meltr.cli._processes import is_first, restarted, several, together
from meltr.cli._times import seconds_of
from meltr.cli.options import Selection
from meltr.cli.output import print_json, remark
from meltr.engine.stop_requests import StopRequests
from meltr.errors import UserError
from meltr.folders.claims import Claim
from meltr.observers.tracker import TRACKERS, check_names
from meltr.settings import dump_yaml

_OUTPUT = "Output"

OutputDir = Annotated[Path, typer.Option(help="Parent folder of the run's folder.", rich_help_panel=_OUTPUT)]
Name = Annotated[
    str | None, typer.Option(help="Name of the run's folder; default: made from the settings.", rich_help_panel=_OUTPUT)
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace an earlier run of that name, once this one has a checkpoint or results.",
        rich_help_panel=_OUTPUT,
    ),
]
Resume = Annotated[
    Path | None, typer.Option(metavar="RUN", help="Continue the run in this folder.", rich_help_panel=_OUTPUT)
]
FromScratch = Annotated[
    bool,
    typer.Option(
        "--from-scratch", help="With --resume: start at step 0 if no checkpoint is whole.", rich_help_panel=_OUTPUT
    ),
]
ForceUnlock = Annotated[
    bool,
    typer.Option(
        "--force-unlock",
        help="Take over the folder of a run from a process that has ended on another host.",
        rich_help_panel=_OUTPUT,
    ),
]
MaxTime = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="End after the step in which this time is up, with a checkpoint: 90 (seconds), 45m, 12h, 1:30:00.",
        rich_help_panel=_OUTPUT,
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show the settings and the folder, and stop.", rich_help_panel=_OUTPUT)
]
FastDevRun = Annotated[
    bool,
    typer.Option(
        "--fast-dev-run",
        help="Run a few steps of everything to see that it works; keep nothing.",
        rich_help_panel=_OUTPUT,
    ),
]
Deterministic = Annotated[
    bool,
    typer.Option(
        "--deterministic",
        help="Use only operations that give the same bits every time, also on a GPU.",
        rich_help_panel="Settings",
    ),
]
TensorBoard = Annotated[
    bool, typer.Option("--tensorboard", help="The same as --tracker tensorboard.", rich_help_panel=_OUTPUT)
]
Trackers = Annotated[
    list[str] | None,
    typer.Option(
        "--tracker",
        metavar="NAME",
        help=f"Also send the numbers to {', '.join(TRACKERS)} (each an extra); may be repeated.",
        rich_help_panel=_OUTPUT,
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.", rich_help_panel=_OUTPUT)]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("run")(run)


def run(
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
    deterministic: Deterministic = False,
    device: opt.Device = None,
    output_dir: OutputDir = Path("runs"),
    name: Name = None,
    overwrite: Overwrite = False,
    resume: Resume = None,
    from_scratch: FromScratch = False,
    force_unlock: ForceUnlock = False,
    max_time: MaxTime = None,
    dry_run: DryRun = False,
    fast_dev_run: FastDevRun = False,
    tensorboard: TensorBoard = False,
    tracker: Trackers = None,
    quiet: Quiet = False,
    as_json: opt.AsJson = False,
) -> None:
    """Train a backbone on a task and test the best checkpoint."""
    sets = [*(sets or ()), *(["train.deterministic=true"] if deterministic else ())]
    selection = Selection.of(locals())
    limit = seconds_of(max_time)
    check_names(tracker or [])
    trackers = tuple(dict.fromkeys([*(["tensorboard"] if tensorboard else []), *(tracker or [])]))
    job = _job(
        ctx, selection, resume=resume, output_dir=output_dir, name=name, overwrite=overwrite, fast_dev_run=fast_dev_run
    )
    if from_scratch and not job.resume:
        raise UserError("--from-scratch goes with --resume", "A new run starts at step 0 anyway.")
    if dry_run:
        if is_first():
            _show(job, as_json=as_json)
        return
    claim = None
    if job.folder is not None:
        named, force = name is not None or overwrite, force_unlock or restarted()
        claim = Claim(
            job.folder, resume=job.resume, named=named, overwrite=overwrite and not job.resume, force=force, say=remark
        )
    how = Manner(quiet=quiet or as_json, fast_dev_run=fast_dev_run, trackers=trackers, from_scratch=from_scratch)
    train, listening = job.spec.train, StopRequests(several=several()).listening(limit)
    with listening as stop, together(job.spec.device, train.rank_timeout) as ranks:
        job, results = performed(job, claim, dataclasses.replace(how, stop=stop), ranks)
    if not is_first():
        return
    if as_json:
        print_json(results)
    else:
        typer.echo(summary(results, job.folder))


def _job(
    ctx: typer.Context,
    selection: Selection,
    *,
    resume: Path | None,
    output_dir: Path,
    name: str | None,
    overwrite: bool,
    fast_dev_run: bool,
) -> Job:
    if resume is not None:
        if name is not None or overwrite or fast_dev_run:
            raise UserError("--name, --overwrite and --fast-dev-run cannot be used with --resume", "Remove them.")
        return resumed_job(ctx, resume, selection)
    keep = not fast_dev_run and is_first()
    return new_job(ctx, selection, output_dir=output_dir, name=name, overwrite=overwrite, keep=keep)


def _show(job: Job, *, as_json: bool) -> None:
    """Print the settings of the run and the folder it would be written to."""
    if as_json:
        where = None if job.folder is None else str(job.folder)
        seeds = job.seeds or [job.spec.seed]
        print_json({"run_dir": where, "seeds": seeds, "resume": job.resume, "spec": job.spec.model_dump(mode="json")})
        return
    typer.echo(dump_yaml(job.spec), nl=False)
    for spec, folder in job.runs():
        typer.echo(
            f"# seed {spec.seed}: {'nothing would be kept' if folder is None else f'would be written to {folder}'}"
        )
