"""ALPRO as a video backbone: data, model, losses, weights and scores for the hooks of `meltr.video.VideoAdapter`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from meltr.context import RunContext
from meltr.errors import UserError
from meltr.hookspecs import hookimpl
from meltr.video import Corpus, Labels, Source, VideoAdapter
from meltr.video.adapter.source import open_frames
from meltr.video.corpora import open_corpus
from meltr.video.frame_cache import CachedFrames
from meltr.video.frames.media import DecodedMedia
from meltr.video.frames.source import FrameSource, Remembered
from meltr.video.options import picked
from meltr.video.tasks.reranking import Scores
from meltr.video.text.wordpiece import Tokenizer
from meltr.weights import LoadReport
from meltr_alpro.clips import EVALUATION, AlproEncoder, distinct, scaled
from meltr_alpro.losses.draws import draw
from meltr_alpro.losses.tasks import Batch, LossSettings, task_losses
from meltr_alpro.model.alpro import Alpro
from meltr_alpro.model.building import build_model
from meltr_alpro.model.scoring import PAIRS_PER_PASS, Retrieval, answer_logits
from meltr_alpro.options import AlproOptions
from meltr_alpro.weights.pretrained import PUBLISHED, load_pretrained, why_no_prompter


class AlproAdapter(VideoAdapter[Alpro]):
    """Question answering and retrieval with ALPRO."""

    published_weights = PUBLISHED

    def open_source(self, context: RunContext) -> Source:
        """Return the data set with clips for training and for evaluation; without a prompter, ``pem`` is dropped.

        Raises:
            UserError: If questions come with choices, files are missing or broken, or the frame cache does not fit.
        """
        options: AlproOptions = context.options
        corpus, change = open_corpus(context.spec, quiet=context.rank > 0), partial(scaled, size=options.image_size)
        if any(item.choices for item in corpus.splits["train"]):
            raise UserError(
                f"The questions of {corpus.dataset} have choices, but ALPRO answers from a vocabulary of answers.",
                "Remove `choices` from the manifest: the training answers then form the vocabulary.",
            )
        source = open_frames(context, corpus, sampler=EVALUATION[options.eval_sampling], change=change)
        drawn: FrameSource = DecodedMedia(source.corpus.media, options.frames, distinct)
        if options.frame_cache is not None:
            drawn = CachedFrames(options.frame_cache, options.frames, distinct, size=options.image_size)
        fixed = options.sampling == "fixed"
        clips = (source.media if fixed else Remembered(drawn, change, most_bytes=0), source.media)
        own = "pem" not in context.losses or context.weights_follow or self.from_scratch(options)
        why = None if own else why_no_prompter(options.weights)
        return Source(source.corpus, clips, ready=source.ready or fixed, left_out={"pem": why} if why else {})

    def open_files(self, corpus: Corpus, meta: Mapping[str, Any], context: RunContext) -> Source:
        """Return files of the user, with the frames of evaluation."""
        options: AlproOptions = context.options
        frames = DecodedMedia(corpus.media, options.frames, EVALUATION[options.eval_sampling], threads=0)
        clips = Remembered(frames, partial(scaled, size=options.image_size), most_bytes=0)
        return Source(corpus, (clips, clips), ready=True)

    def encoder(self, source: Source, tokenizer: Tokenizer, labels: Labels, context: RunContext) -> AlproEncoder:
        """Return the encoder, which turns items into tensors."""
        return AlproEncoder(tokenizer, labels, *source.media)

    def make_model(self, meta: Mapping[str, Any], context: RunContext) -> Alpro:
        """Return the model with the heads that the task and its losses need."""
        return build_model(context.options, meta, task=context.spec.task, losses=context.spec.losses)

    def load_weights(self, model: Alpro, options: AlproOptions) -> Sequence[LoadReport]:
        """Load an official checkpoint, or one of a run."""
        return [] if options.weights is None else [load_pretrained(model, options.weights)]

    @hookimpl
    def model_blocks(self, model: Alpro) -> Sequence[nn.Module]:
        """Return the blocks of the video encoder and the layers of BERT."""
        return model.blocks()

    def losses(self, model: Alpro, batch: Mapping[str, Tensor], context: RunContext) -> dict[str, Tensor]:
        """Return the losses named in ``context.losses``; all random numbers come from ``context.generator``."""
        drawn = draw(model.config, batch["ids"], generator=context.generator)
        ready, settings = Batch(**batch), picked(LossSettings, context.options)
        return task_losses(model, ready, drawn, wanted=context.losses, settings=settings)

    def answer_logits(self, model: Alpro, batch: Mapping[str, Tensor], context: RunContext) -> Tensor:
        """Return the logits of the answers, (B, A)."""
        return answer_logits(model, batch["video"], batch["ids"])

    def similarity(
        self, model: Alpro, texts: Mapping[str, Tensor], videos: Iterable[Mapping[str, Tensor]], context: RunContext
    ) -> Scores:
        """Return how well each text fits each video, by two vectors, by the fusion, or both."""
        options: AlproOptions = context.options
        pairs = options.pairs_per_pass or PAIRS_PER_PASS
        how = Retrieval(options.scoring, options.rerank, pairs_per_pass=pairs)
        return how.scores(model, texts["ids"], (batch["video"] for batch in videos))

    def scores_pairs_alone(self, context: RunContext) -> bool:
        """Return True unless the best pairs are re-ranked."""
        return bool(context.options.scoring != "rerank")
