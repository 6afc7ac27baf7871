"""The data of a run: which examples, which frames, and the splits made of them."""

from __future__ import annotations

from typing import Any, cast

from meltr.context import Data, RunContext
from meltr.data.loader import LoaderBatches
from meltr.errors import UserError
from meltr.seeding import derive
from meltr.video.corpora import cut, open_corpus
from meltr.video.corpus import Corpus
from meltr.video.text.lengths import notes_on_long_texts
from meltr.video.text.vocabulary import run_vocabulary
from meltr.video.text.wordpiece import Tokenizer
from meltr_allinone.data.clips import open_clips
from meltr_allinone.data.examples import Examples, Split, Wanted
from meltr_allinone.data.texts import Texts
from meltr_allinone.options import AllInOneOptions


def build_data(context: RunContext) -> Data:
    """Read the data set of a run and cut its splits.

    Raises:
        UserError: If files are missing, broken, or do not fit the settings.
    """
    spec, options = context.spec, cast(AllInOneOptions, context.options)
    whole = open_corpus(spec, quiet=context.rank > 0)
    _check_open_ended(whole)
    whole, clips = open_clips(whole, context)
    corpus = cut(whole, spec)
    context.notes.extend(corpus.notes)
    own = options.size == "tiny" and options.weights is None
    file = run_vocabulary(context, whole, options.vocabulary, own=own)
    tokenizer = Tokenizer(file, length=options.text_length)
    texts = Texts(tokenizer, spec.task, {name: number for number, name in enumerate(corpus.answers)})
    context.notes.extend(notes_on_long_texts(corpus, options.text_length))
    wanted = Wanted(
        options.image_size,
        options.augmentation,
        whole_words=options.whole_words,
        false_video=options.false_videos == "dataset" and "vtm" in context.losses,
        false_texts=options.false_texts if "rank" in context.losses else 0,
        any_item=options.false_items == "any",
    )

    def batches(split: str) -> LoaderBatches:
        return LoaderBatches(
            Examples(corpus.splits[split], texts=texts, frames=clips.train, wanted=wanted),
            spec.train.batch_size,
            seed=derive(spec.seed, split),
            rank=context.rank,
            world_size=context.world_size,
            workers=clips.workers,
        )

    def evaluated(split: str) -> Split | None:
        if split not in corpus.splits:
            return None
        return Split(
            split, corpus, texts, clips.evaluation, size=options.image_size, seed=spec.seed, workers=clips.workers
        )

    return Data(
        train=batches("train"),
        validation=evaluated("validation"),
        test=evaluated("test"),
        held_out=batches("held_out") if spec.bilevel.outer_batch == "held_out" else None,
        meta=_meta(corpus, tokenizer, sample=spec.sample),
    )


def _check_open_ended(corpus: Corpus) -> None:
    if any(item.choices for item in corpus.splits["train"]):
        raise UserError(
            f"The questions of {corpus.dataset} come with choices; All-in-one answers from a vocabulary of answers.",
            "Leave `choices` out of the manifest: then the training answers are the vocabulary.",
        )


def _meta(corpus: Corpus, tokenizer: Tokenizer, *, sample: bool) -> dict[str, Any]:
    meta: dict[str, Any] = {
        "splits": {name: len(items) for name, items in corpus.splits.items()},
        "videos": len({item.media for items in corpus.splits.values() for item in items}),
        "vocabulary": tokenizer.size,
        "sample": sample,
    }
    return meta | ({"answers": list(corpus.answers)} if corpus.answers else {})
