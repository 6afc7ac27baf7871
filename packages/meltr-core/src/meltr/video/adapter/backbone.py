"""What a video backbone gives: the methods that a subclass of `meltr.video.VideoAdapter` writes or overrides.

Four are needed by all: `encoder`, `make_model`, `losses`, and the method that scores the backbone's task:

| task | method |
| --- | --- |
| ``qa``, ``action`` | `answer_logits` |
| ``retrieval`` | `similarity` |
| ``captioning`` | `captions` |
| ``sentiment`` | `sentiments` |

``context.options`` is an instance of the options model of the backbone. It derives from
`meltr.video.options.VideoOptions`, or from `meltr.video.options.FrameOptions` where `open_source` is not overridden.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from meltr.context import RunContext
from meltr.errors import PluginError
from meltr.video.adapter.encoder import Encoder, Labels, TextTokenizer
from meltr.video.adapter.source import Source, open_frames
from meltr.video.adapter.splits import CaptionScoring
from meltr.video.corpora import open_corpus
from meltr.video.corpus import Corpus
from meltr.video.frames.media import DecodedMedia
from meltr.video.frames.pictures import padded_squares
from meltr.video.frames.source import Frames, Remembered
from meltr.video.tasks.reranking import Scores
from meltr.video.text.lengths import notes_on_long_texts
from meltr.video.text.vocabulary import VOCABULARY, run_vocabulary
from meltr.video.text.wordpiece import Tokenizer
from meltr.weights import LoadReport

M = TypeVar("M", bound=nn.Module)
Columns = Mapping[str, Tensor]


class VideoBackbone(ABC, Generic[M]):
    """The part of a video adapter that differs between backbones; `meltr.video.VideoAdapter` calls it."""

    sampler = "centres"
    """Which frames of a video are seen, a name of `meltr.video.frames.sampling.SAMPLERS`."""

    published_weights = "FILE"
    """Name of the published checkpoint, for the note that none was given."""

    # Data

    def open_source(self, context: RunContext) -> Source:
        """Return the data set of a run; override it for data of another form.

        Called by `build_data`. As it is: the data set as published, or its synthetic sample, with the frames `sampler`
        of each video.

        Raises:
            UserError: If files are missing, broken, or do not fit the settings.
        """
        corpus = open_corpus(context.spec, quiet=context.rank > 0)
        change = functools.partial(self.change_frames, size=context.options.image_size)
        return open_frames(context, corpus, sampler=self.sampler, change=change)

    def open_files(self, corpus: Corpus, meta: Mapping[str, Any], context: RunContext) -> Source:
        """Return files that a user names, in place of a data set; override it together with `open_source`.

        Called by `predict`.

        Args:
            corpus: An item for each file, in the split ``predict``; the keys of media are the paths.
            meta: The facts of the data that the run was trained on.
            context: The run.
        """
        options = context.options
        frames = DecodedMedia(corpus.media, options.frames, meta.get("sampler", self.sampler), threads=0)
        change = functools.partial(self.change_frames, size=options.image_size)
        return Source(corpus, Remembered(frames, change, most_bytes=0), ready=True)

    @staticmethod
    def change_frames(frames: Frames, size: int) -> Frames:
        """Return frames (T, H, W, 3) as (T, size, size, 3), bytes; as it is: padded to squares, then resized.

        Done once for each video, before an `Encoder` sees it.
        """
        return padded_squares(frames, size)

    def tokenizer(self, corpus: Corpus | None, context: RunContext) -> TextTokenizer:
        """Return what turns texts into token ids; override it for another than the WordPiece of BERT.

        Called by `build_data`, and by `predict` without a corpus. As it is, `build_data` leaves a copy of the
        vocabulary in the folder of the run, and `predict` reads it.

        Args:
            corpus: The data set before limits, which must not change a vocabulary made of its words; None in `predict`.
            context: The run.

        Raises:
            UserError: If there is no vocabulary, or it is not one for this model.
        """
        options = context.options
        if corpus is None:
            assert context.run_dir is not None
            return Tokenizer(context.run_dir / VOCABULARY, length=options.text_length)
        words, own = self.extra_words(corpus, options), self.from_scratch(options)
        file = run_vocabulary(context, corpus, options.vocabulary, own=own, extra_words=words)
        return Tokenizer(file, length=options.text_length)

    @abstractmethod
    def encoder(self, source: Source, tokenizer: Any, labels: Labels, context: RunContext) -> Encoder:
        """Return how an item becomes tensors. Called by `build_data` and `predict`.

        Args:
            source: What `open_source` or `open_files` returned.
            tokenizer: What `tokenizer` returned.
            labels: The right answers as numbers.
            context: The run.
        """

    def from_scratch(self, options: Any) -> bool:
        """Return whether the model is a small one that starts from random weights, as it is meant to.

        Then it takes the words of the data set as vocabulary, and no note says that weights were not given. Called by
        `tokenizer` and `build_model`.
        """
        return options.size == "tiny" and options.weights is None

    def extra_words(self, corpus: Corpus, options: Any) -> Sequence[str]:
        """Return texts whose words a vocabulary of the data set's own words needs besides. Called by `tokenizer`."""
        return ()

    def notes_on_texts(self, corpus: Corpus, encoder: Encoder, context: RunContext) -> list[str]:
        """Return notes on texts that are cut. Called by `build_data`.

        Raises:
            UserError: If the texts do not fit the settings.
        """
        return notes_on_long_texts(corpus, context.options.text_length)

    # Model

    @abstractmethod
    def make_model(self, meta: Mapping[str, Any], context: RunContext) -> M:
        """Return the model with the heads that task and losses need, randomly initialised. Called by `build_model`.

        Args:
            meta: Facts of the data: ``vocabulary`` (tokens), ``answers`` (list of names) for open-ended answers and
                classes, ``choices`` (how many) for multiple choice, and `Source.meta`.
            context: The run; ``context.spec.losses`` are the losses in use.
        """

    def load_weights(self, model: M, options: Any) -> Sequence[LoadReport]:
        """Load pretrained weights into a model, and return a report for each file. Called by `build_model`.

        Not called where a checkpoint of the run follows.

        Raises:
            UserError: If a file cannot be read, or does not fit.
        """
        return ()

    @abstractmethod
    def losses(self, model: M, batch: Columns, context: RunContext) -> dict[str, Tensor]:
        """Return the losses named in ``context.losses``, 0-dim, primary first. Called by `compute_task_losses`.

        Args:
            model: The model, in training mode.
            batch: Columns of `Encoder.example`, with a batch dimension in front, on ``context.device``.
            context: The run; draw from ``context.generator``.
        """

    # Evaluation and prediction: the model is in eval mode, without gradients

    def answer_logits(self, model: M, batch: Columns, context: RunContext) -> Tensor:
        """Return the logits of the answers, classes or choices, (B, A).

        Args:
            model: The model.
            batch: Columns of `Encoder.evaluated` and ``number`` (B,), the number of each example in its split.
            context: The run.
        """
        raise self._lacks("answer_logits", context)

    def similarity(self, model: M, texts: Columns, videos: Iterable[Columns], context: RunContext) -> Tensor | Scores:
        """Return how well each text fits each video, (M, N), the higher the better.

        Where the best are ordered anew, text to video and video to text have matrices of their own: see
        `meltr.video.tasks.reranking.reranked`.

        Args:
            model: The model.
            texts: Columns of `Encoder.text` of all M texts, on the CPU.
            videos: Batches of columns of `Encoder.video`, on ``context.device``, of N videos in all. Go through them
                once.
            context: The run.
        """
        raise self._lacks("similarity", context)

    def views(self, context: RunContext) -> int:
        """Return how many views of a video (frames at other random places) retrieval averages the scores of."""
        return 1

    def captions(
        self, model: M, batch: Columns, encoder: Encoder, context: RunContext, *, count: int
    ) -> list[list[tuple[str, float]]]:
        """Return at least one and at most `count` captions for each example, best first, with log probabilities.

        Args:
            model: The model.
            batch: Columns of `Encoder.evaluated`.
            encoder: Its tokenizer has the words.
            context: The run.
            count: How many.
        """
        raise self._lacks("captions", context)

    def caption_scoring(self, options: Any) -> CaptionScoring:
        """Return how captions are scored."""
        return CaptionScoring()

    def sentiments(self, model: M, batch: Columns, context: RunContext) -> Tensor:
        """Return the sentiment of each example, from -3 to 3, (B,).

        Args:
            model: The model.
            batch: Columns of `Encoder.evaluated`.
            context: The run.
        """
        raise self._lacks("sentiments", context)

    def details(self, context: RunContext) -> Mapping[str, Any]:
        """Return JSON-able facts on how the run is evaluated, saved beside the results."""
        return {}

    def _lacks(self, method: str, context: RunContext) -> PluginError:
        return PluginError(
            f"{type(self).__name__} has no method {method}, which the task {context.spec.task!r} needs.",
            "Write it, or take the task out of BackboneInfo.tasks.",
        )
