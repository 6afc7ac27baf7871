"""``meltr predict``: predictions of a trained run for videos and images."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from meltr.cli.options import AsJson, Trust, plugins_of_run, registry_for
from meltr.cli.output import print_json, remark, table
from meltr.context import FILE_KEYS, Prediction, PredictRequest
from meltr.errors import UserError
from meltr.folders.places import set_aside
from meltr.folders.run_folder import RunFolder
from meltr.folders.seeds_folder import SeedsFolder, started_runs
from meltr.progress import ProgressCounter

_ASK = "What to predict"
_ANSWER = "The answer"
SHOWN = 5
"""Number of files named in a warning."""

Video = Annotated[list[Path] | None, typer.Option(help="A video; may be repeated.", rich_help_panel=_ASK)]
Image = Annotated[list[Path] | None, typer.Option(help="An image; may be repeated.", rich_help_panel=_ASK)]
Videos = Annotated[
    Path | None,
    typer.Option("--videos", "--images", help="All videos and images in a folder.", rich_help_panel=_ASK),
]
Question = Annotated[str | None, typer.Option(help="A question about each of them.", rich_help_panel=_ASK)]
Choices = Annotated[str | None, typer.Option(help="Answers to choose from: a,b,c.", rich_help_panel=_ASK)]
Text = Annotated[list[str] | None, typer.Option(help="A text to classify; may be repeated.", rich_help_panel=_ASK)]
Search = Annotated[str | None, typer.Option(help="Rank them by this text.", rich_help_panel=_ASK)]
Top = Annotated[int, typer.Option(min=1, help="Number of answers, or of files.", rich_help_panel=_ANSWER)]
Sheet = Annotated[
    Path | None, typer.Option(metavar="FILE.png", help="Draw a contact sheet of the files.", rich_help_panel=_ANSWER)
]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("predict")(predict)


def predict(
    ctx: typer.Context,
    run: Annotated[Path, typer.Argument(help="Folder of a run; for several seeds, the first is used.")],
    *,
    video: Video = None,
    image: Image = None,
    videos: Videos = None,
    question: Question = None,
    choices: Choices = None,
    search: Search = None,
    text: Text = None,
    top: Top = 5,
    sheet: Sheet = None,
    checkpoint: Annotated[str, typer.Option(help="best, last, or a name such as step-000500.")] = "best",
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:0, mps; default: the run's.")] = None,
    plugin: Annotated[list[Path] | None, typer.Option(help="Python file with a plugin, if it has moved.")] = None,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Predict with a trained run: classify or caption videos, answer a --question, rank them by a text (--search).

    A run on texts classifies a --text.

    The data set is not needed.
    """
    media = _named(video or (), image or ())
    request = PredictRequest(media, question, _split_choices(choices), search, top, tuple(text or ()))
    _check(request, videos, sheet)
    aside = set_aside(run)
    if aside is not None:
        remark(f"the run that {run} replaces is in {aside}, until {run} has a checkpoint or results")
    folder = _one_of(run)
    registry = registry_for(ctx, plugins_of_run(folder.path, folder.read_spec().plugins, plugin, trust=trust))
    from meltr.engine.predicting import load_run
    from meltr.video.contact_sheet import tiles_of, write_sheet

    with contextlib.redirect_stdout(sys.stderr):
        trained = load_run(folder.path, registry=registry, checkpoint=checkpoint, device=device)
        found, broken = _in_folder(videos, quiet=as_json)
        media = tuple(dict.fromkeys((*media, *found)))
        prediction = trained.predict(dataclasses.replace(request, media=media))
    if as_json:
        answer = {"what": prediction.what, "rows": prediction.rows, "skipped": broken}
        print_json({"run_dir": folder.path, "checkpoint": trained.checkpoint, **answer})
    else:
        typer.echo(f"{folder.path}: {prediction.what or 'prediction'}, checkpoint {trained.checkpoint}")
        typer.echo(_shown(prediction))
    if sheet is not None:
        write_sheet(sheet, tiles_of(prediction.rows), title=search or question or "")
        remark(f"contact sheet: {sheet}")


def _named(videos: Sequence[Path], images: Sequence[Path]) -> tuple[Path, ...]:
    """Return the files given one by one; UserError if one does not exist."""
    for option, paths in (("--video", videos), ("--image", images)):
        for path in paths:
            if path.is_dir():
                raise UserError(f"{option} {path} is a folder", "To use all files of a folder: --videos DIR")
            if not path.is_file():
                raise UserError(f"{option} {path}: there is no such file", "Check the path.")
    return tuple(dict.fromkeys((*videos, *images)))


def _split_choices(text: str | None) -> tuple[str, ...]:
    """Return the choices; a choice with a comma must be in double quotes."""
    if text is None:
        return ()
    choices = [word.strip() for line in csv.reader([text], skipinitialspace=True) for word in line]
    if not all(choices) or len(choices) < 2 or len(set(choices)) < len(choices):
        raise UserError(
            f"--choices {text!r} is not a list of two or more different answers", "For example: --choices yes,no"
        )
    return tuple(choices)


def _check(request: PredictRequest, folder: Path | None, sheet: Path | None) -> None:
    """Reject options that cannot be combined in any run."""
    anything = bool(request.media) or folder is not None
    if any(not text.strip() for text in request.text):
        raise UserError("--text is empty", "Give a text: --text 'the film was great'")
    if request.text and (anything or sheet is not None):
        option = "--sheet" if sheet is not None else "videos and images"
        raise UserError(f"--text cannot be combined with {option}", "Use one of them.")
    for option, text in (("--question", request.question), ("--search", request.search)):
        if text is not None and not text.strip():
            raise UserError(f"{option} is empty", f"Give a text: {option} 'a man plays the guitar'")
    if request.question is not None and request.search is not None:
        raise UserError("--question and --search cannot be combined", "Use one of them.")
    if request.choices and request.question is None:
        raise UserError("--choices needs a question", "Add --question 'what is the man doing?'")
    if request.search is not None and not anything:
        raise UserError("--search needs videos to rank", "Add --videos DIR, the folder with the videos.")
    if request.question is not None and not anything:
        raise UserError(
            "--question needs a video to ask about", "Add --video FILE, or --videos DIR for all files of a folder."
        )
    if not anything and not request.text:
        raise UserError("no video or image was given", "Use --video FILE, --image FILE, --videos DIR, or --text TEXT.")
    if sheet is not None and (sheet.suffix.lower() != ".png" or sheet.is_dir()):
        raise UserError(f"--sheet {sheet} is not the name of a PNG file", "For example: --sheet found.png")


def _one_of(run: Path) -> RunFolder:
    """Return the run, or the first started run of several seeds."""
    started = started_runs(run)
    if SeedsFolder(run).seeds is not None:
        remark(f"{run} holds {len(started)} started seeds; {started[0].path.name} is used")
    return started[0]


def _in_folder(folder: Path | None, *, quiet: bool) -> tuple[tuple[Path, ...], dict[Path, str]]:
    """Return the files of `folder` that can be decoded, and the errors of the others."""
    from meltr.data.processes import available_cores
    from meltr.video.frames.media_files import decodable, list_media

    if folder is None:
        return (), {}
    found = list_media(folder)
    with ProgressCounter("files", quiet=quiet) as progress:
        kept, broken = decodable(found, workers=min(available_cores(), len(found)), progress=progress)
    if broken:
        first = "".join(f"\n  {problem}" for problem in list(broken.values())[:SHOWN])
        more = f"\n  and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
        remark(
            f"warning: {len(broken)} of {len(found)} files in {folder} could not be decoded and are skipped:"
            f"{first}{more}"
        )
    return kept, broken


def _shown(prediction: Prediction) -> str:
    """Return the rows as a table with one column per value; files are shown by name."""
    names = list(dict.fromkeys(name for row in prediction.rows for name in row))
    return table([names, *([_cell(name, row) for name in names] for row in prediction.rows)])


def _cell(name: str, row: Mapping[str, Any]) -> str:
    value = row.get(name, "")
    if name in FILE_KEYS and value:
        return Path(value).name
    return f"{value:.4g}" if isinstance(value, float) else str(value)
