"""The work of one ``meltr run``: one run or several seeds, new or resumed."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from meltr.cli._processes import is_first, restarted
from meltr.cli.options import Selection, registry_for
from meltr.cli.output import remark, table
from meltr.errors import StoppedRun, UserError
from meltr.files import write_json
from meltr.folders.claims import Claim
from meltr.folders.locks import RunLock
from meltr.folders.places import begun_before, choose_folder
from meltr.folders.run_folder import RunFolder, seed_folder
from meltr.folders.seeds_folder import SeedsFolder, aggregate
from meltr.hookspecs import hookimpl
from meltr.observers.tracker import tracker
from meltr.plugins import Registry
from meltr.settings import difference, resolve
from meltr.specs import RunSpec

if TYPE_CHECKING:
    from meltr.engine.stop_requests import StopRequests
    from meltr.parallel.ranks import Ranks

MAY_CHANGE = {"device", "data_root", "data.download", "train.rank_timeout"}
"""Settings that may change when a run is resumed: the device, the place of the data, and how long processes wait."""


@dataclass(frozen=True)
class Job:
    """A run, or one run for each of several seeds.

    Args:
        registry: The plugins found.
        spec: The run; for several seeds, the first one.
        folder: Its folder, or the parent of the seeds' folders; None: write nothing.
        seeds: The seeds, each with its own folder; None: a single run.
        resume: Continue the run in the folder.
    """

    registry: Registry
    spec: RunSpec
    folder: Path | None
    seeds: list[int] | None = None
    resume: bool = False

    def runs(self) -> list[tuple[RunSpec, Path | None]]:
        """Return each run with its folder."""
        if self.seeds is None or self.folder is None:
            return [(self.spec, self.folder)]
        return [
            (self.spec.model_copy(update={"seed": seed}), seed_folder(self.folder, seed).path) for seed in self.seeds
        ]


def new_job(
    ctx: typer.Context, selection: Selection, *, output_dir: Path, name: str | None, overwrite: bool, keep: bool
) -> Job:
    """Resolve the settings of a new run and choose its folder; writes nothing.

    Args:
        ctx: The command's context.
        selection: The user's options.
        output_dir: The parent folder.
        name: Name of the run's folder; None: made from the settings.
        overwrite: An existing run of that name will be deleted.
        keep: False if nothing will be written, or not by this process.

    Raises:
        UserError: If settings or the name are not valid.
    """
    registry = registry_for(ctx, selection.plugin_files())
    spec = selection.resolve(registry)
    seeds = selection.seeds() or [spec.seed]
    if not keep:
        if len(seeds) > 1 and is_first():
            remark(f"--fast-dev-run uses the first seed only: {seeds[0]}")
        return Job(registry, spec, None)
    several = seeds if len(seeds) > 1 else None
    begun = begun_before(spec, output_dir, name) if restarted() else None
    if begun is not None:
        return Job(registry, spec, begun, several, resume=True)
    return Job(registry, spec, choose_folder(spec, output_dir, name, overwrite=overwrite), several)


def agreed(job: Job, ranks: Ranks | None) -> Job:
    """Return rank 0's job in every process: folder, seeds, and whether to resume."""
    if ranks is None:
        return job
    folder, seeds, resume = ranks.broadcast_object((job.folder, job.seeds, job.resume))
    return dataclasses.replace(job, folder=folder, seeds=seeds, resume=resume)


def resumed_job(ctx: typer.Context, folder: Path, selection: Selection) -> Job:
    """Read the job in `folder`.

    Raises:
        UserError: If there is no job, or `selection` changes its results.
    """
    several = SeedsFolder(folder)
    parent, seeds = several.read(), several.seeds
    stored = RunFolder(folder).read_spec() if parent is None else RunSpec.model_validate(parent["spec"])
    content = stored.model_dump(mode="json") if parent is None else parent["spec"]
    registry = registry_for(ctx, selection.plugin or stored.plugins)
    spec = _with_changes(registry, selection, stored, content)
    asked = selection.seeds()
    if asked and asked != (seeds or [stored.seed]):
        raise UserError(f"{folder} was run with seed {seeds or stored.seed}, not {asked}", "Remove --seed.")
    return Job(registry, spec, folder, seeds, resume=True)


def _with_changes(registry: Registry, selection: Selection, stored: RunSpec, content: Mapping[str, Any]) -> RunSpec:
    """Return `stored` with the allowed changes; UserError if `selection` changes more than that."""
    flags = {key: value for key, value in selection.flags().items() if value is not None and key != "seed"}
    if selection.config is not None:
        raise UserError("--config cannot be used with --resume", "A resumed run has the settings in its run.yaml.")
    if not (flags or selection.sets or selection.plugin):
        return stored
    spec = resolve(registry, config=content, flags=flags, sets=selection.sets, plugins=selection.plugin)
    if "preset" not in flags:
        spec = spec.model_copy(update={"preset": stored.preset})
    changed = [key for key in difference(stored, spec) if key not in MAY_CHANGE]
    if changed:
        hint = "Remove these options, or start a new run (without --resume) with its run.yaml as --config."
        raise UserError(f"a resumed run cannot change its settings; you changed: {', '.join(changed)}", hint)
    return spec


@dataclass(frozen=True)
class Manner:
    """How a job is done.

    Args:
        quiet: Show no progress.
        fast_dev_run: A few steps of everything, nothing kept.
        trackers: Names of the trackers that get the numbers of the run, see `meltr.observers.tracker.TRACKERS`.
        from_scratch: Start a resumed run at step 0 if no checkpoint is whole.
        stop: What may ask a run to stop.
        plots: Draw the plots of ``meltr plot`` at the end.
    """

    quiet: bool = False
    fast_dev_run: bool = False
    trackers: tuple[str, ...] = ()
    from_scratch: bool = False
    stop: StopRequests | None = None
    plots: bool = True


def performed(job: Job, claim: Claim | None, how: Manner, ranks: Ranks | None) -> tuple[Job, dict[str, Any]]:
    """Claim the folder of a job, do it, and return it as it was done with its results.

    Args:
        job: The job.
        claim: The claim of its folder; None in processes that do not write.
        how: How it is done.
        ranks: The processes that share it; None: this one alone.
    """
    given_back = False
    try:
        try:
            if claim is not None and ranks is None:
                job = dataclasses.replace(job, folder=claim.enter())
            elif ranks is not None:
                folder = ranks.decide(lambda: None if claim is None else claim.enter())
                job = agreed(dataclasses.replace(job, folder=folder), ranks)
            return job, perform(job, how, ranks)
        finally:
            given_back = claim is not None and claim.leave()
    except (KeyboardInterrupt, StoppedRun) as error:
        state = f"{error}\n" if isinstance(error, StoppedRun) else ""
        if given_back:
            remark(f"\n{state}the earlier run is back in {job.folder}")
        elif job.folder is not None and job.folder.exists() and is_first():
            remark(f"\n{state}continue with: meltr run --resume {job.folder}")
        else:
            raise
        if isinstance(error, StoppedRun):
            error.told = True
        raise


def perform(job: Job, how: Manner, ranks: Ranks | None = None) -> dict[str, Any]:
    """Finish `job` and return its results: those of the run, or of all seeds together.

    If matplotlib is installed, the plots of ``meltr plot`` are drawn as well.
    """
    results = []
    if job.seeds is not None and job.folder is not None and not job.resume and is_first():
        SeedsFolder(job.folder).write(job.seeds, job.spec)
    for number, (spec, folder) in enumerate(job.runs(), start=1):
        done = RunFolder(folder).read_results() if job.resume and folder is not None else None
        done = done if ranks is None else ranks.broadcast_object(done)
        if done is not None:
            if is_first():
                remark(f"{folder} is already finished")
        else:
            if job.seeds is not None and is_first() and not how.quiet:
                remark(f"seed {spec.seed} ({number} of {len(job.seeds)})")
            done = _execute(job, spec, folder, how, ranks)
            if how.plots:
                _draw(folder, quiet=how.quiet)
        results.append(done)
    if job.seeds is None or job.folder is None:
        return results[0]
    together = aggregate(job.seeds, results)
    if is_first():
        write_json(SeedsFolder(job.folder).results, together)
        _draw(job.folder, quiet=how.quiet)
    return together


def _observers(quiet: bool, trackers: Sequence[str]) -> list[object]:
    from meltr.observers.console import ConsoleObserver

    if not is_first():
        return []
    return [_QuietWarnings() if quiet else ConsoleObserver(), *map(tracker, trackers)]


class _QuietWarnings:
    """Shows the warnings of a run whose progress is not shown, such as a damaged checkpoint."""

    @hookimpl
    def on_message(self, level: str, message: str) -> None:
        if level == "warning":
            remark(f"warning: {message}")


def _draw(folder: Path | None, *, quiet: bool) -> None:
    """Draw the plots of a run, if its folder is kept and matplotlib is installed."""
    if folder is None or not is_first() or importlib.util.find_spec("matplotlib") is None:
        return
    from meltr.report.plots import draw
    from meltr.report.runs import load_group

    try:
        draw(load_group(folder))
        if not quiet:
            remark(f"plots: {RunFolder(folder).plots}")
    except UserError as error:
        remark(f"no plots: {error.message}")


def _execute(job: Job, spec: RunSpec, folder: Path | None, how: Manner, ranks: Ranks | None) -> dict[str, Any]:
    """Execute one run; output of plugins goes to standard error."""
    from meltr.engine.run import execute

    resume = job.resume and folder is not None and RunFolder(folder).was_started
    with _seed_locked(folder if job.seeds is not None and is_first() else None), contextlib.redirect_stdout(sys.stderr):
        return execute(
            spec,
            run_dir=folder,
            registry=job.registry,
            observers=_observers(how.quiet, how.trackers),
            resume=resume,
            fast_dev_run=how.fast_dev_run,
            ranks=ranks,
            from_scratch=how.from_scratch,
            stop=how.stop,
        )


@contextlib.contextmanager
def _seed_locked(folder: Path | None) -> Iterator[None]:
    """Lock the folder of one of several seeds, which may be resumed by its own name."""
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = RunLock.take(folder)
    try:
        yield
    finally:
        lock.release()


def skipped_everywhere(runs: Sequence[Mapping[str, Any]], split: str) -> dict[str, str]:
    """Return the metrics that all of several runs skipped for a split, with the first run's reason."""
    every = [(run.get(split) or {}).get("skipped") or {} for run in runs]
    return {name: reason for name, reason in every[0].items() if all(name in each for each in every)}


def summary(results: Mapping[str, Any], folder: Path | None) -> str:
    """Return the results as text: one line for one run, a table with mean and deviation for several seeds."""
    where = f"{folder}: " if folder is not None else ""
    metric = results["metric"]
    if "runs" in results:
        rows = [["split", "metric", "mean ± std", "n"]]
        for split in ("validation", "test"):
            for name, each in results.get(split, {}).items():
                rows.append([split, name, f"{each['mean']:.4g} ± {each['std']:.2g}", str(each["n"])])
            for name, reason in skipped_everywhere(results["runs"], split).items():
                rows.append([split, name, f"skipped ({reason})", "0"])
        return f"{where}seeds {', '.join(map(str, results['seeds']))}\n{table(rows)}"
    parts = []
    for split in ("test", "validation"):
        found = results.get(split) or {}
        value = (found.get("metrics") or {}).get(metric)
        if value is not None:
            baselines = (found.get("baselines") or {}).items()
            beside = [f"{name}: {each[metric]:.4g}" for name, each in baselines if metric in each]
            parts.append(f"{split} {metric} = {value:.4g}" + (f" ({', '.join(beside)})" if beside else ""))
    return where + (", ".join(parts) or "nothing was evaluated")
