"""``meltr data sample``: writes a synthetic sample of a data set, in its own layout."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from meltr.errors import UserError
from meltr.progress import ProgressCounter

Dataset = Annotated[str, typer.Option(help="Data set; meltr list datasets shows them.")]
Out = Annotated[Path, typer.Option(help="Folder to write; must be missing or empty.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the clips.")]
Size = Annotated[list[str] | None, typer.Option("--size", help="Clips per split, as train=50; may be repeated.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]


def sample(*, dataset: Dataset, out: Out, seed: Seed = 0, size: Size = None, quiet: Quiet = False) -> None:
    """Write a synthetic sample of a data set: clips of moving shapes, with annotations in the published layout.

    --sample trains on such a sample. Use the folder as --data-root.
    """
    from meltr.video import annotations, miniature

    sizes = dict(_split_size(text) for text in size or ())
    with ProgressCounter("clips", quiet=quiet) as progress:
        folder = miniature.write(dataset, out.expanduser(), seed=seed, sizes=sizes, progress=progress)
    task = annotations.layout(dataset).tasks[0]
    corpus = annotations.read(dataset, task, folder)
    counts = ", ".join(f"{len(items):,} {split}" for split, items in corpus.splits.items())
    typer.echo(f"{folder}: {len(corpus.media):,} clips; examples for {task}: {counts}")


def _split_size(text: str) -> tuple[str, int]:
    split, _, number = text.partition("=")
    if not split or not number.isdecimal():
        raise UserError(f"--size {text} is not a split and a number of clips", "For example: --size train=50")
    return split, int(number)
