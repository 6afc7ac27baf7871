"""``meltr data cache``: decode the videos of a data set once."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from meltr.cli.options import AsJson
from meltr.cli.output import print_json
from meltr.progress import ProgressCounter
from meltr.video.cli.videos import (
    AllowMissing,
    Dataset,
    Quiet,
    Root,
    Sample,
    Sampler,
    Task,
    Workers,
    media_of,
    miniature_folder,
    warn_of_failures,
)

if TYPE_CHECKING:
    from meltr.video.extraction import FillReport
    from meltr.video.frame_cache import CacheSettings

_FRAMES = "Frames"

Out = Annotated[Path, typer.Option(help="Folder of the cache; an existing cache is extended.")]
Count = Annotated[
    int,
    typer.Option("--frames", min=1, help="Frames per video; may be more than a model uses.", rich_help_panel=_FRAMES),
]
Size = Annotated[
    int,
    typer.Option(
        min=0, help="Pixels of the shorter side; 0: as in the video. Never enlarged.", rich_help_panel=_FRAMES
    ),
]
Quality = Annotated[int, typer.Option(min=1, max=95, help="Quality of the JPEG files.", rich_help_panel=_FRAMES)]
Raw = Annotated[bool, typer.Option("--raw", help="Store raw pixels instead of JPEG.", rich_help_panel=_FRAMES)]


def cache(
    *,
    dataset: Dataset,
    out: Out,
    task: Task = None,
    data_root: Root = None,
    sample: Sample = False,
    frames: Count = 5,
    sampler: Sampler = "centres",
    size: Size = 224,
    quality: Quality = 90,
    raw: Raw = False,
    workers: Workers = None,
    allow_missing: AllowMissing = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Decode every video once, so that training never waits for a decoder.

    To continue an interrupted command, run it again. Files that cannot be decoded are listed in failed.jsonl, and the
    next call tries them again.
    """
    from meltr.data.processes import worker_count
    from meltr.video.frame_cache import CacheSettings, fill_cache

    quiet = quiet or as_json
    settings = CacheSettings(frames=frames, sampler=sampler, size=size or None, quality=None if raw else quality)
    if sample:
        data_root = miniature_folder(dataset, data_root, quiet=quiet)
    media = media_of(dataset, task, data_root, allow_missing=allow_missing)
    with ProgressCounter("videos", quiet=quiet) as progress:
        report = fill_cache(media, out, settings, workers=worker_count(workers), progress=progress)
    _show(report, out, settings, as_json=as_json)


def _show(report: FillReport, out: Path, settings: CacheSettings, *, as_json: bool) -> None:
    """Print the content of the cache and the failures."""
    from meltr.video.frame_cache.layout import FAILED

    warn_of_failures(report, f"are skipped (all are listed in {out / FAILED})")
    if as_json:
        print_json({"cache": out, "settings": asdict(settings), **report._asdict()})
        return
    size = sum(file.stat().st_size for file in out.glob("shard-*"))
    held = report.total - len(report.failed)
    typer.echo(f"{out}: {held:,} videos ({report.added:,} new), {settings.text()}, {size / 2**20:,.1f} MiB")
