"""The data of a run: texts, clips and the splits made of them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, cast

from meltr.context import Data, RunContext
from meltr.data.loader import LoaderBatches
from meltr.data.processes import available_cores
from meltr.errors import UserError
from meltr.seeding import derive
from meltr.video.corpora import cut
from meltr.video.corpus import Corpus
from meltr.video.text.lengths import notes_on_cut
from meltr.video.text.vocabulary import run_vocabulary
from meltr.video.text.wordpiece import Tokenizer
from meltr_univl.data.examples import Clips, Examples, Split, Texts
from meltr_univl.data.prepared_texts import NO_TRANSCRIPT
from meltr_univl.data.sources import Source, open_source
from meltr_univl.data.texts import Wording
from meltr_univl.options import UnivlOptions


def build_data(context: RunContext) -> Data:
    """Read the data set of a run, as published or in UniVL's prepared files, and cut its splits.

    Raises:
        UserError: If files are missing, broken, or do not fit the settings.
    """
    spec, options = context.spec, cast(UnivlOptions, context.options)
    source = open_source(context)
    corpus = cut(source.corpus, spec)
    context.notes.extend(corpus.notes)
    wording = _wording(context, source.corpus)
    texts = Texts(spec.task, wording, options.inputs, options.no_text)
    _check_transcripts(corpus, texts)
    context.notes.extend(_long_texts(corpus, texts))
    clips = Clips(source.features, options.video_length, source.rate, options.pick)
    workers = options.workers
    if workers is None:
        workers = 0 if spec.sample else min(4, available_cores())

    def batches(split: str) -> LoaderBatches:
        return LoaderBatches(
            Examples(corpus.splits[split], texts=texts, clips=clips, sentences=options.sentences),
            spec.train.batch_size,
            seed=derive(spec.seed, split),
            rank=context.rank,
            world_size=context.world_size,
            workers=workers,
        )

    def evaluated(split: str) -> Split | None:
        if split not in corpus.splits:
            return None
        examples = Examples(corpus.splits[split], texts=texts, clips=clips, first=spec.task != "retrieval")
        return Split(split, corpus, examples, workers, options.caption_tokens, options.meteor)

    return Data(
        train=batches("train"),
        validation=evaluated("validation"),
        test=evaluated("test"),
        held_out=batches("held_out") if spec.bilevel.outer_batch == "held_out" else None,
        meta=_meta(corpus, source, wording, context),
    )


def _wording(context: RunContext, corpus: Corpus) -> Wording:
    """Return how texts become numbers, with the vocabulary of the run."""
    options = cast(UnivlOptions, context.options)
    said = {item.transcript or "" for items in corpus.splits.values() for item in items}
    own = options.size == "tiny" and options.weights is None
    file = run_vocabulary(context, corpus, options.vocabulary, own=own, extra_words=sorted(said | {options.no_text}))
    return Wording(Tokenizer(file, length=options.text_length), caption_length=options.caption_length)


def _check_transcripts(corpus: Corpus, texts: Texts) -> None:
    """Refuse captioning with transcripts where there are none."""
    if texts.task != "captioning" or texts.inputs == "v":
        return
    items = [item for items in corpus.splits.values() for item in items]
    if all((item.transcript or "").lower() in NO_TRANSCRIPT for item in items):
        raise UserError(
            f"inputs=v+t, but none of the {len(items):,} clips of {corpus.dataset} has a transcript.",
            "Add them to the data set, or caption from the video alone: --set inputs=v",
        )


def _long_texts(corpus: Corpus, texts: Texts) -> list[str]:
    """Return notes on texts and captions that are cut."""
    items = [item for items in corpus.splits.values() for item in items]
    captions = [caption for item in items for caption in item.captions]
    encoded = [texts.pair(item, caption)[0] for item in items for caption in (item.captions[:1] or ("",))]
    limits = {
        "text": (captions if texts.task == "retrieval" else encoded, texts.wording.tokenizer.length - 2),
        "caption": (captions, texts.wording.caption_length - 1),
    }
    return [note for name, (cut, most) in limits.items() for note in notes_on_cut(cut, most, what=name)]


def _meta(corpus: Corpus, source: Source, wording: Wording, context: RunContext) -> dict[str, Any]:
    record = asdict(source.features.record)
    del record["failed"]
    return {
        "splits": {name: len(items) for name, items in corpus.splits.items()},
        "videos": len({item.media for items in corpus.splits.values() for item in items}),
        "vocabulary": wording.tokenizer.size,
        "video_dim": source.features.record.width,
        "features": record | {"rate": source.rate},
        "sample": context.spec.sample,
    }
