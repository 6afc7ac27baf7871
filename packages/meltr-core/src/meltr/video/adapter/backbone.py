"""The methods that a subclass of `meltr.video.VideoAdapter` writes or overrides for its backbone.

Every backbone needs four: `encoder`, `make_model`, `losses`, and the method that scores its task:

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
    """The part of a video adapter that is specific to a backbone; `meltr.video.VideoAdapter` calls it."""

    sampler = "centres"
    """Which frames of a video are used: a name in `meltr.video.frames.sampling.SAMPLERS`."""

    published_weights = "FILE"
    """Name of the published checkpoint, for the note that no weights were given."""

    # Data

    def open_source(self, context: RunContext) -> Source:
        """Return the data set of a run; override it for data in another form.

        Called by `build_data`. By default this is the data set as published, or its synthetic sample, with the frames
        that `sampler` selects.

        Raises:
            UserError: If files are missing, broken, or do not fit the settings.
        """
        corpus = open_corpus(context.spec, quiet=context.rank > 0)
        change = functools.partial(self.change_frames, size=context.options.image_size)
        return open_frames(context, corpus, sampler=self.sampler, change=change)

    def open_files(self, corpus: Corpus, meta: Mapping[str, Any], context: RunContext) -> Source:
        """Return files that a user names, instead of a data set; override it together with `open_source`.

        Called by `predict`.

        Args:
            corpus: One item per file, in the split ``predict``; the keys of media are the paths.
            meta: The facts about the data that the run was trained on.
            context: The run.
        """
        options = context.options
        frames = DecodedMedia(corpus.media, options.frames, meta.get("sampler", self.sampler), threads=0)
        change = functools.partial(self.change_frames, size=options.image_size)
        return Source(corpus, Remembered(frames, change, most_bytes=0), ready=True)

    @staticmethod
    def change_frames(frames: Frames, size: int) -> Frames:
        """Return frames (T, H, W, 3) as (T, size, size, 3), bytes; by default they are padded to squares, then resized.

        Called once per video, before an `Encoder` sees it.
        """
        return padded_squares(frames, size)

    def tokenizer(self, corpus: Corpus | None, context: RunContext) -> TextTokenizer:
        """Return the tokenizer of texts; override it to use another one than BERT's WordPiece.

        Called by `build_data`, and by `predict` without a corpus. By default, `build_data` stores a copy of the
        vocabulary in the run folder, and `predict` reads it from there.

        Args:
            corpus: The data set before limits, so that they do not change a vocabulary of its words; None in `predict`.
            context: The run.

        Raises:
            UserError: If there is no vocabulary, or it does not fit this model.
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
        """Return the encoder, which turns items into tensors. Called by `build_data` and `predict`.

        Args:
            source: The result of `open_source` or `open_files`.
            tokenizer: The result of `tokenizer`.
            labels: The right answers as numbers.
            context: The run.
        """

    def from_scratch(self, options: Any) -> bool:
        """Return whether the model is a small one that is meant to start from random weights.

        It then uses the words of the data set as its vocabulary, and no note says that weights were not given. Called
        by `tokenizer` and `build_model`.
        """
        return options.size == "tiny" and options.weights is None

    def extra_words(self, corpus: Corpus, options: Any) -> Sequence[str]:
        """Return texts whose words are added to a vocabulary of the data set's words. Called by `tokenizer`."""
        return ()

    def notes_on_texts(self, corpus: Corpus, encoder: Encoder, context: RunContext) -> list[str]:
        """Return notes on texts that are truncated. Called by `build_data`.

        Raises:
            UserError: If the texts do not fit the settings.
        """
        return notes_on_long_texts(corpus, context.options.text_length)

    # Model

    @abstractmethod
    def make_model(self, meta: Mapping[str, Any], context: RunContext) -> M:
        """Return the model with the heads for task and losses, randomly initialised. Called by `build_model`.

        Args:
            meta: Facts about the data: ``vocabulary`` (tokens), ``answers`` (list of names) for open-ended answers and
                classes, ``choices`` (their number) for multiple choice, and `Source.meta`.
            context: The run; ``context.spec.losses`` are the losses in use.
        """

    def load_weights(self, model: M, options: Any) -> Sequence[LoadReport]:
        """Load pretrained weights into a model, and return a report for each file. Called by `build_model`.

        Not called if a checkpoint of the run is loaded afterwards.

        Raises:
            UserError: If a file cannot be read, or does not fit.
        """
        return ()

    @abstractmethod
    def losses(self, model: M, batch: Columns, context: RunContext) -> dict[str, Tensor]:
        """Return the losses named in ``context.losses``, 0-dim, primary first. Called by `compute_task_losses`.

        Args:
            model: The model, in training mode.
            batch: Columns of `Encoder.example`, with a leading batch dimension, on ``context.device``.
            context: The run; use ``context.generator`` for random numbers.
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
        """Return how well each text fits each video, (M, N); higher is better.

        If the best pairs are re-ranked, text to video and video to text have separate matrices: see
        `meltr.video.tasks.reranking.reranked`.

        Args:
            model: The model.
            texts: Columns of `Encoder.text` of all M texts, on the CPU.
            videos: Batches of columns of `Encoder.video`, on ``context.device``, of N videos in all; iterate over them
                only once.
            context: The run.
        """
        raise self._lacks("similarity", context)

    def scores_pairs_alone(self, context: RunContext) -> bool:
        """Tell whether the score of a text and a video depends on these two alone, and not on the other videos.

        Then several processes share the videos of an evaluation: each calls `similarity` with its own ones. It is False
        where the best pairs are re-ranked, or scores are normalised over videos.
        """
        return False

    def views(self, context: RunContext) -> int:
        """Return the number of views of a video (with different random frames) whose scores retrieval averages."""
        return 1

    def captions(
        self, model: M, batch: Columns, encoder: Encoder, context: RunContext, *, count: int
    ) -> list[list[tuple[str, float]]]:
        """Return 1 to `count` captions for each example, best first, with log probabilities.

        Args:
            model: The model.
            batch: Columns of `Encoder.evaluated`.
            encoder: The encoder, whose tokenizer holds the words.
            context: The run.
            count: Largest number of captions per example.
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
        """Return JSON-able facts about the evaluation, saved beside the results."""
        return {}

    def _lacks(self, method: str, context: RunContext) -> PluginError:
        return PluginError(
            f"{type(self).__name__} has no method {method}, which the task {context.spec.task!r} needs.",
            "Write it, or remove the task from BackboneInfo.tasks.",
        )
