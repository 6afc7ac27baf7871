"""``meltr data check``: which files of a data set exist, which are missing, and where they belong."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from meltr.cli.options import AsJson
from meltr.cli.output import print_json, table
from meltr.errors import UserError
from meltr.video.annotations import READERS
from meltr.video.annotations.assembly import first
from meltr.video.annotations.survey import Survey, survey

DataRoot = Annotated[Path | None, typer.Option(help="Folder of the data set, or the file of a manifest.")]


def check(
    ctx: typer.Context,
    *,
    dataset: Annotated[str, typer.Option(help="Data set; meltr list datasets shows them.")],
    data_root: DataRoot = None,
    task: Annotated[str | None, typer.Option(help="Task; default: the data set's first.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show which files of a data set exist, which are missing and where they belong, and the items of each split.

    Exit code 1 if something is missing or malformed.
    """
    info = ctx.obj.registry.dataset(dataset)
    if dataset not in READERS:
        where = "It needs no files." if info.embedded else f"Its layout:\n{info.layout or 'see its plugin'}"
        raise UserError(f"the data set {dataset!r} is read by its own plugin, so meltr cannot check it", where)
    found = survey(dataset, task, data_root.expanduser() if data_root else None)
    if as_json:
        print_json(_content(found))
    else:
        typer.echo(_report(found))
    if not found.complete:
        raise typer.Exit(1)


def _content(found: Survey) -> dict[str, Any]:
    return {
        "dataset": found.layout.dataset,
        "task": found.task,
        "data_root": found.root,
        "complete": found.complete,
        "files": [
            {"names": list(each.names), "holds": each.holds, "needed": each.needed, "path": path}
            for each, path in found.files
        ],
        "splits": {
            each.name: {"items": each.items, "usable": each.usable, "published": each.published}
            for each in found.splits
        },
        "media": {"found": found.media, "missing": list(found.missing)},
        "problem": None if found.problem is None else found.problem.message,
        "notes": list(found.notes),
    }


def _report(found: Survey) -> str:
    parts = [f"{found.layout.dataset} ({found.task}) in {found.root}", "annotations:", _files(found)]
    parts += ["videos:", f"  {_media(found)}"]
    if found.splits:
        parts += [f"{found.layout.unit}:", _splits(found)]
    if found.notes:
        parts += ["notes:", *(f"  {note}" for note in found.notes)]
    if found.problem is not None:
        parts += ["problem:", *(f"  {line}" for line in str(found.problem).splitlines())]
    if found.complete:
        parts.append("All files exist.")
    else:
        parts += _what_to_do(found)
    return "\n".join(parts)


def _what_to_do(found: Survey) -> list[str]:
    lines = []
    if not found.readable or any(not each.items for each in found.splits):
        lines.append(found.layout.places(found.root))
    elif found.missing:
        lines += [found.elsewhere] if found.elsewhere else []
        lines.append(found.layout.media_place(found.root))
    if found.readable and any(each.usable for each in found.splits if each.name == "train"):
        lines.append("To use only the files that exist, add --allow-missing to meltr run.")
        return [*lines, "To run without any files, add --sample: it uses a synthetic sample."]
    return [*lines, "To run without any files, add --sample to meltr run: it uses a synthetic sample."]


def _files(found: Survey) -> str:
    rows = []
    for each, path in found.files:
        if path is not None:
            name = path.name if path == found.root else str(path.relative_to(found.root))
            rows.append(["ok", name, each.holds])
        else:
            rows.append(["MISSING" if each.needed else "not there", each.names[0], each.description()])
    return table(rows)


def _media(found: Survey) -> str:
    if not found.readable:
        if found.layout.media is None:
            return "unknown while the annotations cannot be read"
        return f"{found.media:,} exist; the annotations determine which ones are needed"
    total = found.media + len(found.missing)
    if not found.missing:
        return f"all {total:,} that the annotations name"
    return f"{found.media:,} of {total:,}; MISSING {len(found.missing):,}: {first(found.missing)}"


def _splits(found: Survey) -> str:
    rows = [["split", "items", "with video", "published", ""]]
    for each in found.splits:
        differs = each.published is not None and each.items != each.published
        published = "" if each.published is None else f"{each.published:,}"
        remark = "EMPTY" if not each.items else "differs from the published number" if differs else ""
        rows.append([each.name, f"{each.items:,}", f"{each.usable:,}", published, remark])
    if "validation" not in {each.name for each in found.splits}:
        rows.append(["validation", "none", "", "", "cut from train (--set data.validation=0.1)"])
    return table(rows)
