"""``meltr push``: sends a run to the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from meltr.cli.options import AsJson
from meltr.cli.output import print_json, remark, table
from meltr.errors import UserError, did_you_mean

PLACES = ("hub",)


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("push")(push)


def push(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run with one seed.")],
    *,
    to: Annotated[str, typer.Option("--to", metavar="hub", help="Where to: the Hugging Face Hub.")],
    repo: Annotated[str | None, typer.Option(metavar="USER/NAME", help="The repository; made if it is new.")] = None,
    checkpoint: Annotated[str, typer.Option(help="best, last, or a name such as step-000500.")] = "best",
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public; it is private else.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the files, and send nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Send weights, settings, results and the model card of a run; no other file leaves the folder."""
    if to not in PLACES:
        raise UserError(f"--to {to} is not known", did_you_mean(to, PLACES))
    if repo is None and not dry_run:
        raise UserError("--repo is missing: the repository to send to", "For example: --repo user/name")
    from meltr.report.publishing import collect
    from meltr.report.publishing import push as send

    upload = collect(run, checkpoint)
    sizes = {name: len(each) if isinstance(each, bytes) else each.stat().st_size for name, each in upload.files.items()}
    if dry_run:
        if as_json:
            print_json({"files": sizes, "bytes": upload.size, "sent": False})
            return
        typer.echo(table([[name, f"{size:,} bytes"] for name, size in sizes.items()]))
        remark(f"{len(sizes)} files, {upload.size:,} bytes; nothing was sent")
        return
    assert repo is not None
    address = send(upload, repo, private=not public)
    if as_json:
        print_json({"files": sizes, "bytes": upload.size, "sent": True, "url": address})
    else:
        typer.echo(address)
