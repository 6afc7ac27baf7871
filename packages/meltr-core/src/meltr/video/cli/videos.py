"""Options and helpers shared by the commands for videos of a data set. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from meltr.cli.output import remark
from meltr.errors import UserError
from meltr.progress import ProgressCounter

if TYPE_CHECKING:
    from meltr.video.extraction import FillReport

SHOWN = 3
"""Number of names shown in a message."""

Dataset = Annotated[str, typer.Option(help="Data set; meltr list datasets shows them.")]
Task = Annotated[str | None, typer.Option(help="Only the videos of this task; default: all of its tasks.")]
Root = Annotated[Path | None, typer.Option(help="Folder of the data set.")]
Sample = Annotated[bool, typer.Option("--sample", help="Use a small synthetic sample instead.")]
Workers = Annotated[int | None, typer.Option(min=0, help="Processes that decode; default: one per core, up to 8.")]
AllowMissing = Annotated[bool, typer.Option("--allow-missing", help="Skip files that are missing.")]
Sampler = Annotated[
    str, typer.Option(help="Which frames: 'centres' or 'middles' of equal segments.", rich_help_panel="Frames")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:0, mps.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]


def miniature_folder(dataset: str, data_root: Path | None, *, quiet: bool) -> Path:
    """Return the folder of the data set's synthetic sample."""
    from meltr.video import miniature

    if data_root is not None:
        raise UserError("--sample generates its own data, but --data-root was given too", "Remove one of them.")
    with ProgressCounter("clips of the synthetic sample", quiet=quiet) as progress:
        return miniature.cached(dataset, progress=progress)


def warn_of_failures(report: FillReport, consequence: str) -> None:
    """Print which videos cannot be decoded, if there are any.

    Args:
        report: The report of `fill`.
        consequence: The consequence for them: ``have no features``.
    """
    if not report.failed:
        return
    keys = sorted(report.failed)
    remark(
        f"warning: {len(keys):,} of {report.total:,} videos could not be decoded and {consequence}: "
        f"{', '.join(keys[:SHOWN])}{', ...' if len(keys) > SHOWN else ''}. The first, {keys[0]}: "
        f"{report.failed[keys[0]]}"
    )


def media_of(dataset: str, task: str | None, root: Path | None, *, allow_missing: bool) -> Mapping[str, Path]:
    """Return key -> file of everything that the annotations name, sorted; several tasks may share files.

    Raises:
        UserError: If the annotations cannot be read, or files are missing and `allow_missing` is not given.
    """
    from meltr.video import annotations

    media: dict[str, Path] = {}
    for name in _readable(dataset, root) if task is None else [task]:
        corpus = annotations.read(dataset, name, root, allow_missing=allow_missing)
        media.update(corpus.media)
        for note in corpus.notes:
            remark(note)
    return dict(sorted(media.items()))


def _readable(dataset: str, root: Path | None) -> Sequence[str]:
    """Return the tasks for which there are annotations; the user's own data may support only some."""
    from meltr.video import annotations

    tasks = annotations.layout(dataset).tasks
    if len(tasks) == 1:
        return tasks
    errors: dict[str, UserError] = {}
    for name in tasks:
        try:
            annotations.read(dataset, name, root, allow_missing=True)
        except UserError as error:
            errors[name] = error
    if len(errors) < len(tasks):
        return [name for name in tasks if name not in errors]
    causes = "".join(f"\n  {name}: {error.message}" for name, error in errors.items())
    raise UserError(f"{dataset} cannot be read for any task:{causes}", "Choose the task with --task.")
