"""``meltr data features``: compute the features of a data set from its videos. This module does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from meltr.cli.data import add_command
from meltr.cli.options import AsJson
from meltr.cli.output import print_json, remark
from meltr.progress import Counter
from meltr.video.cli.videos import (
    AllowMissing,
    Dataset,
    Quiet,
    Root,
    Sample,
    Task,
    Workers,
    media_of,
    miniature_folder,
)

if TYPE_CHECKING:
    from meltr_univl.features.extraction import FeatureReport

SHOWN = 3
"""Maximum number of names in a message."""

Out = Annotated[Path, typer.Option(help="Output folder. Features are added to an existing folder.")]
Extractor = Annotated[
    str, typer.Option(help="s3d-howto100m (UniVL's), s3d (torchvision's), grid (colours, no weights), or auto.")
]
Weights = Annotated[Path | None, typer.Option(help="s3d_howto100m.pth, or torchvision's S3D.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:0, mps.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    add_command(app, "features", features)


def features(
    *,
    dataset: Dataset,
    out: Out,
    extractor: Extractor = "auto",
    weights: Weights = None,
    task: Task = None,
    data_root: Root = None,
    sample: Sample = False,
    device: Device = "auto",
    workers: Workers = None,
    allow_missing: AllowMissing = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Compute the features of every video, which are the input of UniVL.

    Run an interrupted command again to resume it.
    """
    quiet = quiet or as_json
    if sample:
        data_root = miniature_folder(dataset, data_root, quiet=quiet)

    from meltr.data.processes import available_cores
    from meltr.devices import resolve_device
    from meltr.video.frames.media import require
    from meltr_univl.features.extraction import Recipe, fill_features
    from meltr_univl.features.extractors import open_extractor

    open_extractor(extractor, weights)  # report a problem with it before the videos are searched
    for library in ("av", "PIL.Image"):
        require(library)
    videos = _videos(dataset, task, data_root, allow_missing=allow_missing)
    processes = min(8, available_cores()) if workers is None else workers
    recipe = Recipe(extractor, weights, str(resolve_device(device)))
    with Counter("videos", quiet=quiet) as progress:
        report = fill_features(videos, out, recipe, workers=processes, progress=progress)
    _show(report, out, as_json=as_json)


def _videos(dataset: str, task: str | None, root: Path | None, *, allow_missing: bool) -> Mapping[str, Path]:
    media = media_of(dataset, task, root, allow_missing=allow_missing)
    return dict(sorted(media.items()))


def _show(report: FeatureReport, out: Path, *, as_json: bool) -> None:
    """Print the content of the folder and the videos that failed."""
    failed = report.record.failed
    if failed:
        key, reason = next(iter(failed.items()))
        remark(
            f"warning: {len(failed):,} of {report.total:,} videos could not be decoded and have no features: "
            f"{', '.join(list(failed)[:SHOWN])}{', ...' if len(failed) > SHOWN else ''}. The first, {key}: {reason}"
        )
    record = report.record
    if as_json:
        made = {"extractor": record.extractor, "width": record.width, "rate": record.rate, "weights": record.weights}
        print_json({"features": out, "record": made, "total": report.total, "added": report.added, "failed": failed})
        return
    held = report.total - len(failed)
    typer.echo(f"{out}: features of {held:,} videos ({report.added:,} new), {record.text()}")
