"""Dual encoders and VideoMAE as a video backbone: data, model, losses and scores for `meltr.video.VideoAdapter`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from meltr.context import RunContext
from meltr.video import Corpus, Encoder, Labels, Source, VideoAdapter
from meltr.video.adapter.source import open_frames
from meltr.video.corpora import open_corpus
from meltr.video.frames.media import DecodedMedia
from meltr.video.frames.source import Remembered
from meltr.video.text.lengths import notes_on_long_texts
from meltr.weights import LoadReport
from meltr_clip.encoder import ClipEncoder, Texts, shaped
from meltr_clip.losses.draws import Words, draw
from meltr_clip.losses.dual import Batch, task_losses
from meltr_clip.losses.served import unable
from meltr_clip.losses.video import video_losses
from meltr_clip.model.dual import HEADS, PER_PASS, Dual
from meltr_clip.model.videomae import VideoTower
from meltr_clip.options import ClipOptions
from meltr_clip.weights.parts import FOLDER, Parts, frames_of
from meltr_clip.weights.pretrained import load_run, pretrained_towers, random_towers
from meltr_clip.weights.small import parts_of


class ClipAdapter(VideoAdapter[Dual | VideoTower]):
    """Retrieval and classes with the dual encoders of transformers, classes with VideoMAE."""

    published_weights = "FILE"
    _parts: Parts | None = None
    _report: LoadReport | None = None

    def parts(self, context: RunContext, corpus: Corpus | None = None) -> Parts:
        """Return configuration, image processor and tokenizer of the run, read once; see `parts_of`."""
        if self._parts is None:
            self._parts = parts_of(context, corpus)
        return self._parts

    def open_source(self, context: RunContext) -> Source:
        """Return the data set with its frames; losses that the model's towers cannot serve are dropped.

        Raises:
            UserError: If the model cannot do the task, or a loss that was asked for; see also `parts`.
        """
        corpus = open_corpus(context.spec, quiet=context.rank > 0)
        parts = self.parts(context, corpus)
        left_out = unable(parts.family, context)
        frames = frames_of(parts, context.options, corpus)
        settled = context.options.model_copy(update={"frames": frames, "image_size": parts.side})
        change = partial(shaped, parts=parts)
        source = open_frames(replace(context, options=settled), corpus, sampler="middles", change=change)
        return replace(source, left_out=left_out)

    def open_files(self, corpus: Corpus, meta: Mapping[str, Any], context: RunContext) -> Source:
        """Return files of the user."""
        parts = self.parts(context)
        frames = DecodedMedia(corpus.media, frames_of(parts, context.options, corpus), "middles", threads=0)
        return Source(corpus, Remembered(frames, partial(shaped, parts=parts), most_bytes=0), ready=True)

    def tokenizer(self, corpus: Corpus | None, context: RunContext) -> Texts:
        """Return the model's tokenizer, and store the parts in the run folder for the trained run."""
        parts = self.parts(context, corpus)
        if corpus is not None and context.run_dir is not None and context.rank == 0 and not context.weights_follow:
            parts.save(context.run_dir / FOLDER)
        return Texts(parts.tokenizer, parts.length)

    def notes_on_texts(self, corpus: Corpus, encoder: Encoder, context: RunContext) -> list[str]:
        """Return a note if captions are truncated."""
        return notes_on_long_texts(corpus, encoder.tokenizer.length) if corpus.task == "retrieval" else []

    def encoder(self, source: Source, tokenizer: Texts, labels: Labels, context: RunContext) -> ClipEncoder:
        """Return the encoder, which turns items into tensors."""
        return ClipEncoder(tokenizer, labels, source.media, self.parts(context))

    def from_scratch(self, options: ClipOptions) -> bool:
        """Return whether the small model starts from random weights."""
        return options.model is None and options.weights is None

    def make_model(self, meta: Mapping[str, Any], context: RunContext) -> Dual | VideoTower:
        """Return the model, with the weights of ``options.model`` unless those of a checkpoint follow."""
        options, parts = context.options, self.parts(context)
        if options.model is None or context.weights_follow:
            towers = random_towers(parts, attention=options.attention)
        else:
            towers, self._report = pretrained_towers(options.model, parts, attention=options.attention)
        names = meta.get("answers", ())
        if parts.family == "videomae":
            return VideoTower(towers, parts.images, classes=len(names))
        texts = [options.prompt.format(name.replace("_", " ")) for name in names]
        ids = Texts(parts.tokenizer, parts.length).encode(texts) if texts else None
        heads = tuple(name for name in HEADS if name in context.spec.losses)
        return Dual(towers, parts.images, heads=heads, class_ids=ids)

    def load_weights(self, model: Dual | VideoTower, options: ClipOptions) -> Sequence[LoadReport]:
        """Load ``options.weights``, let the head of classes start from their texts, and return all reports."""
        reports, own = [], [name for name in model.state_dict() if not name.startswith("towers.")]
        zero_shot = isinstance(model, Dual) and model.classes is not None
        if self._report is not None:
            fresh = tuple(name for name in own if not (zero_shot and name == "classes"))
            reports.append(replace(self._report, missing=self._report.missing + fresh))
        if options.weights is not None:
            reports.append(load_run(model, options.weights))
            zero_shot = zero_shot and "classes" not in reports[-1].loaded
        if zero_shot:
            assert isinstance(model, Dual)
            model.start_classes()
        return reports

    def losses(self, model: Dual | VideoTower, batch: Mapping[str, Tensor], context: RunContext) -> dict[str, Tensor]:
        """Return the losses named in ``context.losses``; all random numbers come from ``context.generator``."""
        options: ClipOptions = context.options
        video, generator = batch["video"], context.generator
        if isinstance(model, VideoTower):
            ratio = options.mask_ratio
            return video_losses(
                model, video, batch["answer"], wanted=context.losses, mask_ratio=ratio, generator=generator
            )
        answers = batch.get("answer")
        ids = batch["ids"] if answers is None or model.class_ids is None else model.class_ids[answers]
        ready = Batch(video, ids, batch["group"] if answers is None else answers, batch.get("shapes"))
        drawn = draw(ids, video.shape[1], self._words(context), generator=generator)
        return task_losses(model, ready, drawn, wanted=context.losses, negatives=options.negatives)

    def _words(self, context: RunContext) -> Words:
        parts = self.parts(context)
        tokens = parts.tokenizer
        return Words(parts.config.text_config.vocab_size, tuple(tokens.all_special_ids), tokens.mask_token_id)

    def answer_logits(self, model: Dual | VideoTower, batch: Mapping[str, Tensor], context: RunContext) -> Tensor:
        """Return the logits of the classes, (B, C)."""
        return model.class_logits(batch["video"], batch.get("shapes"))

    def similarity(
        self,
        model: Dual | VideoTower,
        texts: Mapping[str, Tensor],
        videos: Iterable[Mapping[str, Tensor]],
        context: RunContext,
    ) -> Tensor:
        """Return the model's logits of texts and videos, (M, N)."""
        assert isinstance(model, Dual)
        clips = torch.cat([model.clips(model.pictures(batch["video"]), batch.get("shapes")) for batch in videos])
        found = [model.texts(part.to(context.device)) for part in texts["ids"].split(PER_PASS)]
        return model.scores(torch.cat(found), clips)
