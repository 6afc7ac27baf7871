"""Sources of a run's examples, frames and visual codes: published data, or VIOLET's prepared files."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from meltr.context import RunContext
from meltr.errors import UserError
from meltr.video.adapter.source import Source, memory_bytes, open_frames
from meltr.video.annotations import layout
from meltr.video.corpora import open_corpus
from meltr.video.corpus import Corpus
from meltr.video.frames.pictures import padded_squares
from meltr.video.frames.source import Remembered
from meltr_violet.data import prepared
from meltr_violet.data.code_file import CodeFile
from meltr_violet.data.codes import CodeSource, FixedCodebook
from meltr_violet.model.config import BASE
from meltr_violet.options import VioletOptions

CELL = BASE.cell

SAMPLER = "centres"
"""The frames of a video that are used: those in VIOLET's prepared files."""

Codes = CodeSource | FixedCodebook | None


@dataclass(frozen=True)
class VioletSource(Source):
    """A data set with visual codes.

    Args:
        codes: Its visual codes; None: none.
    """

    codes: Codes = None


def open_source(context: RunContext) -> VioletSource:
    """Return the data set of a run; without visual codes the loss ``mvm`` is dropped.

    Raises:
        UserError: If there is none, or its frames or codes do not fit the settings.
    """
    spec, options = context.spec, cast(VioletOptions, context.options)
    change = functools.partial(padded_squares, size=options.image_size)
    own: CodeSource | None
    found = None
    if options.prepared and not spec.sample:
        found = prepared.find(spec.dataset, spec.task, spec.data_root, allow_missing=spec.data.allow_missing)
    if found is not None:
        _check_frames(found, options)
        context.notes.append(f"prepared files: {found.text()}")
        kept = Remembered(found.frames, change, most_bytes=memory_bytes(context, ready=True))
        source, own = Source(found.corpus, kept, ready=True, meta={"sampler": SAMPLER}), found.codes
    else:
        source = open_frames(context, _published(context), sampler=SAMPLER, change=change)
        own = None if spec.sample else prepared.find_codes(spec.dataset, spec.data_root)
    codes = _codes(context, own, source.meta["sampler"])
    size = codes.size if isinstance(codes, FixedCodebook) else BASE.codes
    left_out = {"mvm": _no_codes(context)} if codes is None else {}
    meta = {**source.meta, "codes": size}
    return VioletSource(source.corpus, source.media, source.ready, meta, left_out, codes)


def _check_frames(found: prepared.Prepared, options: VioletOptions) -> None:
    if found.frames.count != options.frames:
        raise UserError(
            f"{found.files['frames']} holds {found.frames.count} frames per video; frames is {options.frames}.",
            f"Use --set frames={found.frames.count}, or --set prepared=false with the videos themselves.",
        )


def _published(context: RunContext) -> Corpus:
    """Read the data set as published.

    Raises:
        UserError: If a file is missing or broken; if annotations are missing, the hint also names VIOLET's prepared
            files.
    """
    spec = context.spec
    try:
        return open_corpus(spec, quiet=context.rank > 0)
    except UserError as error:
        files = "" if spec.sample or not context.options.prepared else prepared.expected(spec.dataset, spec.task)
        if not files or _has_annotations(spec.dataset, spec.data_root):
            raise
        listed = "".join(f"\n  {line}" for line in files.splitlines())
        raise UserError(
            error.message, f"{error.hint}\nOr VIOLET's prepared files, in the same folder:{listed}"
        ) from None


def _has_annotations(dataset: str, root: Path | None) -> bool:
    if root is None or not root.exists():
        return False
    published = layout(dataset)
    found = published.find(root)
    return all(each.role in found for each in published.files if each.needed)


def _codes(context: RunContext, own: CodeSource | None, sampler: str) -> Codes:
    """Return the source of visual codes; for a trained run, only whether they are colours.

    Args:
        context: The run.
        own: Codes that come with the data set.
        sampler: Selects the frames of clips.

    Raises:
        UserError: If the codes were made for clips of another shape, or from other frames.
    """
    spec, options = context.spec, cast(VioletOptions, context.options)
    if options.codes == "none":
        return None
    if options.codes == "colour" or (options.codes == "auto" and spec.sample):
        return FixedCodebook(cell=CELL)
    if context.weights_follow:
        return None
    source: Any = own if options.codes == "auto" else CodeFile(Path(options.codes))
    if source is None:
        return None
    side = options.image_size // CELL
    wanted = (options.frames, side, side)
    if source.shape != wanted:
        raise UserError(
            f"The visual codes have the shape {source.shape} (frames, rows, columns); the clips need {wanted}.",
            f"Use --set frames={source.shape[0]} --set image_size={source.shape[1] * CELL}, make codes with "
            "`meltr data codes`, or drop the loss mvm with --set codes=none.",
        )
    made = source.settings.sampler if isinstance(source, CodeFile) else SAMPLER
    if {"prepared": SAMPLER}.get(made, made) != sampler:
        raise UserError(
            f"The visual codes are of the frames {made!r}, but the clips use the frames {sampler!r}.",
            f"Make codes with `meltr data codes --sampler {sampler}`, or drop the loss mvm with --set codes=none.",
        )
    return cast(CodeSource, source)


def _no_codes(context: RunContext) -> str:
    if context.options.codes == "none":
        return "codes=none"
    return "there are no visual codes (make them with `meltr data codes`, or use --set codes=colour)"
