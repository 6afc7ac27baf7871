"""``meltr data codes``: the visual codes of a data set, made once with the discrete VAE. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from meltr.cli.data import add_command
from meltr.cli.options import AsJson
from meltr.cli.output import print_json, remark
from meltr.errors import UserError
from meltr.progress import Counter
from meltr.video.cli.videos import (
    AllowMissing,
    Dataset,
    Device,
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
    from meltr.video.frames.source import FrameSource
    from meltr_violet.data.code_file import CodeSettings

ENCODER = "https://cdn.openai.com/dall-e/encoder.pkl"
"""Where the public repository openai/DALL-E keeps the encoder. It publishes no checksum, so it is not fetched here."""

Encoder = Annotated[Path | None, typer.Option(help=f"The discrete VAE's encoder, {ENCODER}, or its tensors.")]
Out = Annotated[Path, typer.Option(help="File of the codes (.safetensors); it is added to if it is there.")]
Count = Annotated[int, typer.Option("--frames", min=1, help="Frames a video: as many as the model takes.")]
Size = Annotated[int, typer.Option(min=32, help="Pixels on a side of the model's picture, a multiple of 32.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    add_command(app, "codes", codes)


def codes(
    *,
    dataset: Dataset,
    out: Out,
    encoder: Encoder = None,
    task: Task = None,
    data_root: Root = None,
    sample: Sample = False,
    frames: Count = 5,
    sampler: Sampler = "centres",
    size: Size = 224,
    device: Device = "auto",
    workers: Workers = None,
    allow_missing: AllowMissing = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Make the visual codes of every video: the targets of VIOLET's loss mvm.

    VIOLET's prepared frames are taken where they are there, the videos otherwise. A killed command goes on where it
    stopped when it is given again.
    """
    path = _encoder_file(encoder)
    if size % 32:
        raise UserError(f"--size {size} is not a multiple of 32", f"For example: --size {max(32, size // 32 * 32)}")
    quiet = quiet or as_json
    if sample:
        data_root = miniature_folder(dataset, data_root, quiet=quiet)
    videos = _prepared(dataset, task, data_root, frames=frames, allow_missing=allow_missing)
    if videos is not None:
        sampler, workers = "prepared", 0
    else:
        videos = _published(dataset, task, data_root, frames=frames, sampler=sampler, allow_missing=allow_missing)

    from meltr.data.processes import worker_count
    from meltr.devices import resolve_device
    from meltr_violet.data.code_extraction import fill_codes, fingerprint
    from meltr_violet.data.code_file import CodeSettings
    from meltr_violet.model.dvae import load_code_encoder

    model = load_code_encoder(path)
    settings = CodeSettings(frames, sampler, size, fingerprint(model))
    processes = worker_count(workers)
    with Counter("videos", quiet=quiet) as progress:
        report = fill_codes(
            videos, out, model, settings, device=resolve_device(device), workers=processes, progress=progress
        )
    _show(report, out, settings, as_json=as_json)


def _encoder_file(path: Path | None) -> Path:
    """Return the encoder's file; UserError that says where to get it."""
    if path is not None and path.is_file():
        return path
    found = "--encoder was not given" if path is None else f"there is no file {path}"
    raise UserError(
        f"visual codes are made by OpenAI's encoder, and {found}",
        f"Get it (215 MB) from {ENCODER} and give it with --encoder encoder.pkl. No code of the file is run.\n"
        "Runs do without codes: they leave the loss mvm out.",
    )


def _prepared(
    dataset: str, task: str | None, root: Path | None, *, frames: int, allow_missing: bool
) -> Mapping[str, FrameSource] | None:
    """Return key -> source for VIOLET's prepared frames; None where there are none."""
    from meltr.video.annotations import layout_for
    from meltr_violet.data import prepared

    found = prepared.find(dataset, layout_for(dataset, task)[1], root, allow_missing=allow_missing)
    if found is None:
        return None
    remark(f"prepared files: {found.text()}")
    if found.frames.count != frames:
        raise UserError(
            f"{found.files['frames']} holds {found.frames.count} frames a video; {frames} were asked for.",
            f"Give --frames {found.frames.count}.",
        )
    for note in found.corpus.notes:
        remark(note)
    named = (item.media for items in found.corpus.splits.values() for item in items)
    return dict.fromkeys(named, found.frames)


def _published(
    dataset: str, task: str | None, root: Path | None, *, frames: int, sampler: str, allow_missing: bool
) -> Mapping[str, FrameSource]:
    """Return key -> source for the videos of a data set as published, each with a source of its own."""
    from meltr.errors import did_you_mean
    from meltr.video.frames.media import DecodedMedia, require
    from meltr.video.frames.sampling import SAMPLERS

    fixed = [name for name in SAMPLERS if name != "random"]
    if sampler not in fixed:
        raise UserError(f"sampler {sampler!r} cannot make codes", did_you_mean(sampler, fixed))
    for library in ("av", "PIL.Image"):
        require(library)
    media = media_of(dataset, task, root, allow_missing=allow_missing)
    return {key: DecodedMedia({key: path}, frames, sampler) for key, path in media.items()}


def _show(report: FillReport, out: Path, settings: CodeSettings, *, as_json: bool) -> None:
    """Print what the file holds and what went wrong."""
    warn_of_failures(report, "have no codes")
    if as_json:
        print_json({"codes": out, "settings": asdict(settings), **report._asdict()})
        return
    held = report.total - len(report.failed)
    typer.echo(f"{out}: codes of {held:,} videos ({report.added:,} new), {settings.text()}")
