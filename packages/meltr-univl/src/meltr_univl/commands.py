"""``meltr data features``: the features of a data set, made once from its videos. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from meltr.cli.data import add_command
from meltr.cli.options import AsJson
from meltr.cli.output import print_json
from meltr.progress import Counter
from meltr.video.cli.videos import (
    AllowMissing,
    Dataset,
    Device,
    Quiet,
    Root,
    Sample,
    Task,
    Workers,
    media_of,
    miniature_folder,
    warn_of_failures,
)

if TYPE_CHECKING:
    from meltr.video.extraction import FillReport
    from meltr_univl.features.reading import FeatureRecord

Out = Annotated[Path, typer.Option(help="Folder of the features; it is added to if it is there.")]
Extractor = Annotated[
    str, typer.Option(help="s3d-howto100m (UniVL's), s3d (torchvision's), grid (colours, no weights), or auto.")
]
Weights = Annotated[Path | None, typer.Option(help="s3d_howto100m.pth, or torchvision's S3D.")]


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
    """Make the features of every video: what UniVL sees of it.

    A killed command goes on where it stopped when it is given again.
    """
    quiet = quiet or as_json
    if sample:
        data_root = miniature_folder(dataset, data_root, quiet=quiet)

    from meltr.data.processes import worker_count
    from meltr.devices import resolve_device
    from meltr.video.frames.media import require
    from meltr_univl.features.extraction import Recipe, fill_features
    from meltr_univl.features.extractors import open_extractor
    from meltr_univl.features.reading import read_record

    open_extractor(extractor, weights)  # what is wrong with it should be said before videos are looked for
    for library in ("av", "PIL.Image"):
        require(library)
    videos = media_of(dataset, task, data_root, allow_missing=allow_missing)
    recipe = Recipe(extractor, weights, str(resolve_device(device)))
    with Counter("videos", quiet=quiet) as progress:
        report = fill_features(videos, out, recipe, workers=worker_count(workers), progress=progress)
    record = read_record(out)
    assert record is not None
    _show(report, out, record, as_json=as_json)


def _show(report: FillReport, out: Path, record: FeatureRecord, *, as_json: bool) -> None:
    """Print what the folder holds and what went wrong."""
    warn_of_failures(report, "have no features")
    if as_json:
        made = {"extractor": record.extractor, "width": record.width, "rate": record.rate, "weights": record.weights}
        print_json({"features": out, "record": made, **report._asdict()})
        return
    held = report.total - len(report.failed)
    typer.echo(f"{out}: features of {held:,} videos ({report.added:,} new), {record.text()}")
