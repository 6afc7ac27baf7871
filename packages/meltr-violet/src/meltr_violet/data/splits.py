"""The data of a run: which files, which frames, which codes, and the splits made of them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from meltr.context import Data, RunContext
from meltr.data.loader import LoaderBatches
from meltr.data.processes import available_cores
from meltr.errors import UserError
from meltr.seeding import derive
from meltr.video.annotations import layout
from meltr.video.corpora import cut, open_corpus
from meltr.video.corpus import Corpus
from meltr.video.frame_cache import CachedFrames, without_failed
from meltr.video.frames.media import DecodedMedia
from meltr.video.frames.pictures import padded_squares
from meltr.video.frames.source import FrameSource, Remembered
from meltr.video.text.lengths import notes_on_long_texts
from meltr.video.text.vocabulary import run_vocabulary
from meltr.video.text.wordpiece import Tokenizer
from meltr_violet.data import prepared
from meltr_violet.data.choice_texts import PROMPT_WORDS
from meltr_violet.data.code_file import CodeFile
from meltr_violet.data.codes import CodeSource, FixedCodebook
from meltr_violet.data.examples import Examples, Split, Texts
from meltr_violet.model.config import BASE
from meltr_violet.options import VioletOptions

CELL = BASE.cell

SAMPLER = "centres"
"""Which frames of a video are seen: those that VIOLET's prepared files hold."""


@dataclass(frozen=True)
class Source:
    """A data set as found.

    Args:
        corpus: Its examples.
        frames: Its frames by key, as they are.
        codes: Its visual codes; None: none.
        ready: True if frames need no decoding.
        sampler: Which frames of a video they are, a name of `meltr.video.frames.sampling.SAMPLERS`.
    """

    corpus: Corpus
    frames: FrameSource
    codes: CodeSource | FixedCodebook | None
    ready: bool
    sampler: str = SAMPLER


def build_data(context: RunContext) -> Data:
    """Read the data set of a run, in published or in VIOLET's prepared form, and cut its splits.

    Raises:
        UserError: If files are missing, broken, or do not fit the settings.
    """
    spec, options = context.spec, cast(VioletOptions, context.options)
    source = _source(context)
    corpus = cut(source.corpus, spec)
    context.notes.extend(corpus.notes)
    own = options.size == "tiny" and options.weights is None
    file = run_vocabulary(context, source.corpus, options.vocabulary, own=own, extra_words=PROMPT_WORDS)
    tokenizer = Tokenizer(file, length=options.text_length)
    classes = {name: number for number, name in enumerate(corpus.answers)}
    texts = Texts(tokenizer, spec.task, classes, options.choice_text)
    context.notes.extend(notes_on_long_texts(corpus, options.text_length))
    workers = options.workers
    if workers is None:
        workers = 0 if source.ready or spec.sample else min(8, available_cores())
    frames = Remembered(
        source.frames,
        functools.partial(padded_squares, size=options.image_size),
        most_bytes=0 if workers else options.memory_mb * 2**20,  # each worker would keep its own, for an epoch
    )

    def examples(split: str, *, codes: bool) -> Examples:
        return Examples(
            corpus.splits[split], texts=texts, frames=frames, codes=source.codes if codes and wants_codes else None
        )

    def batches(split: str) -> LoaderBatches:
        return LoaderBatches(
            examples(split, codes=True),
            spec.train.batch_size,
            seed=derive(spec.seed, split),
            rank=context.rank,
            world_size=context.world_size,
            workers=workers,
        )

    def evaluated(split: str) -> Split | None:
        if split not in corpus.splits:
            return None
        return Split(split, corpus, examples(split, codes=False), texts, corpus.answers, workers)

    wants_codes = "mvm" in context.losses
    left_out = {"mvm": _no_codes(context)} if "mvm" in spec.losses and source.codes is None else {}
    held_out = spec.bilevel.outer_batch == "held_out"
    return Data(
        train=batches("train"),
        validation=evaluated("validation"),
        test=evaluated("test"),
        held_out=batches("held_out") if held_out else None,
        meta=_meta(corpus, source, tokenizer, context),
        left_out=left_out,
    )


def _source(context: RunContext) -> Source:
    """Return the data set as found.

    Raises:
        UserError: If there is none, or its frames or codes do not fit the settings.
    """
    spec, options = context.spec, cast(VioletOptions, context.options)
    found = None
    if options.prepared and not spec.sample:
        found = prepared.find(spec.dataset, spec.task, spec.data_root, allow_missing=spec.data.allow_missing)
    if found is not None:
        if found.frames.count != options.frames:
            raise UserError(
                f"{found.files['frames']} holds {found.frames.count} frames a video; frames is {options.frames}.",
                f"Use --set frames={found.frames.count}, or --set prepared=false with the videos themselves.",
            )
        context.notes.append(f"prepared files: {found.text()}")
        return Source(found.corpus, found.frames, _codes(context, found.codes), ready=True)
    corpus = _published(context)
    own = None if spec.sample else prepared.find_codes(spec.dataset, spec.data_root)
    if options.frame_cache is None:
        frames = DecodedMedia(corpus.media, options.frames, SAMPLER)
        return Source(corpus, frames, _codes(context, own), ready=False)
    cache = CachedFrames(options.frame_cache, options.frames, size=options.image_size, media=corpus.media)
    sampler = cache.settings.sampler
    codes = _codes(context, own, sampler)
    return Source(without_failed(corpus, cache), cache, codes, ready=True, sampler=sampler)


def _published(context: RunContext) -> Corpus:
    """Read the data set as published.

    Raises:
        UserError: If something is missing or broken; where the annotations are not there, it names VIOLET's prepared
            files too.
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


def _codes(context: RunContext, own: CodeSource | None, sampler: str = SAMPLER) -> CodeSource | FixedCodebook | None:
    """Return where visual codes come from; of a trained run, only whether they are colours.

    Args:
        context: The run.
        own: Codes that the data set brings.
        sampler: Which frames the clips are made of.

    Raises:
        UserError: If they were made for clips of another shape, or of other frames.
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
            "`meltr data codes`, or leave mvm out with --set codes=none.",
        )
    made = source.settings.sampler if isinstance(source, CodeFile) else SAMPLER
    if {"prepared": SAMPLER}.get(made, made) != sampler:
        raise UserError(
            f"The visual codes are of the frames {made!r}; the clips are made of the frames {sampler!r}.",
            f"Make codes with `meltr data codes --sampler {sampler}`, or leave mvm out with --set codes=none.",
        )
    return cast(CodeSource, source)


def _no_codes(context: RunContext) -> str:
    if context.options.codes == "none":
        return "codes=none"
    return "there are no visual codes (make them with `meltr data codes`, or use --set codes=colour)"


def _meta(corpus: Corpus, source: Source, tokenizer: Tokenizer, context: RunContext) -> dict[str, Any]:
    choices = next((len(item.choices) for item in corpus.splits["train"] if item.choices), 0)
    codes = source.codes.size if isinstance(source.codes, FixedCodebook) else BASE.codes
    meta = {
        "splits": {name: len(items) for name, items in corpus.splits.items()},
        "videos": len({item.media for items in corpus.splits.values() for item in items}),
        "vocabulary": tokenizer.size,
        "codes": codes,
        "sampler": source.sampler,
        "sample": context.spec.sample,
    }
    if choices:
        meta["choices"] = choices
    return meta | ({"answers": list(corpus.answers)} if corpus.answers else {})
