"""UniVL as a video backbone: its model, losses, weights and scores for the hooks of `meltr.video.VideoAdapter`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn

from meltr.context import RunContext
from meltr.errors import UserError
from meltr.hookspecs import hookimpl
from meltr.optim.building import decay_groups
from meltr.video import Corpus, Encoder, Labels, Source, VideoAdapter
from meltr.video.adapter.splits import CaptionScoring
from meltr.video.options import picked
from meltr.video.text.lengths import notes_on_cut
from meltr.video.text.wordpiece import Tokenizer
from meltr.weights import LoadReport
from meltr_univl.data.encoder import Clips, UnivlEncoder
from meltr_univl.data.prepared_texts import NO_TRANSCRIPT
from meltr_univl.data.source import open_source
from meltr_univl.data.texts import Wording
from meltr_univl.features.asking import AskedFeatures
from meltr_univl.losses.masking import draw_masks
from meltr_univl.losses.tasks import Batch, LossSettings, task_losses
from meltr_univl.model.building import model_config, parts_of
from meltr_univl.model.scoring import describe, encode_texts, encode_videos, join_batches, sentiments, similarity
from meltr_univl.model.similarity import PAIRS_PER_PASS
from meltr_univl.model.univl import Univl
from meltr_univl.options import UnivlOptions
from meltr_univl.weights.pretrained import load_bert, load_pretrained

NO_DECAY = ("bias", "LayerNorm.weight")
"""Parameters with one of these in their name get no weight decay, as in the public repositories."""


class UnivlAdapter(VideoAdapter[Univl]):
    """Retrieval, captioning and sentiment with UniVL."""

    published_weights = "univl.pretrained.bin"

    def open_source(self, context: RunContext) -> Source:
        """Return the data set with features instead of videos."""
        return open_source(context)

    def open_files(self, corpus: Corpus, meta: Mapping[str, Any], context: RunContext) -> Source:
        """Return files of the user, with features that are computed on demand or read from ``.npy`` files."""
        features = AskedFeatures(meta, context.options.extractor_weights, context.device)
        return Source(corpus, features, meta={"features": meta["features"]})

    def encoder(self, source: Source, tokenizer: Tokenizer, labels: Labels, context: RunContext) -> UnivlEncoder:
        """Return the encoder, which turns items into tensors."""
        options: UnivlOptions = context.options
        return UnivlEncoder(
            Wording(tokenizer, caption_length=options.caption_length),
            labels,
            clips=Clips(source.media, options.video_length, source.meta["features"]["rate"], options.pick),
            inputs=options.inputs,
            no_text=options.no_text,
            sentences=options.sentences,
        )

    def extra_words(self, corpus: Corpus, options: UnivlOptions) -> Sequence[str]:
        """Return the transcripts, and the text that replaces a missing one."""
        said = {item.transcript or "" for items in corpus.splits.values() for item in items}
        return sorted(said | {options.no_text})

    def notes_on_texts(self, corpus: Corpus, encoder: Encoder, context: RunContext) -> list[str]:
        """Return notes on truncated texts and captions; check that captioning with transcripts has some."""
        encoder, task = cast(UnivlEncoder, encoder), context.spec.task
        items = [item for items in corpus.splits.values() for item in items]
        silent = all((item.transcript or "").lower() in NO_TRANSCRIPT for item in items)
        if task == "captioning" and encoder.inputs != "v" and silent:
            raise UserError(
                f"inputs=v+t, but none of the {len(items):,} clips of {corpus.dataset} has a transcript.",
                "Add them to the data set, or caption from the video alone: --set inputs=v",
            )
        captions = [caption for item in items for caption in item.captions]
        texts = captions if task == "retrieval" else [encoder.source_text(item, "") for item in items]
        notes = notes_on_cut(texts, encoder.tokenizer.length - 2)
        return notes + notes_on_cut(captions, encoder.wording.caption_length - 1, what="caption")

    def make_model(self, meta: Mapping[str, Any], context: RunContext) -> Univl:
        """Return the model with the parts that the task and its losses need."""
        options, spec = context.options, context.spec
        return Univl(model_config(options, meta), parts=parts_of(options, spec.task, spec.losses))

    def load_weights(self, model: Univl, options: UnivlOptions) -> Sequence[LoadReport]:
        """Load a UniVL checkpoint, or else BERT if it is given."""
        if options.weights is not None:
            return [load_pretrained(model, options.weights)]
        return [] if options.bert is None else [load_bert(model, options.bert)]

    @hookimpl
    def parameter_groups(self, model: Univl, context: RunContext) -> Sequence[Mapping[str, Any]]:
        """Exclude biases and norms from weight decay; scale the text encoder's learning rate."""
        return decay_groups(model, spared=NO_DECAY, lr_scales={"bert.": context.options.text_lr_scale})

    @hookimpl
    def model_blocks(self, model: Univl) -> Sequence[nn.Module]:
        """Return the layers of the encoders and of the decoder."""
        return model.blocks()

    def losses(self, model: Univl, batch: Mapping[str, Tensor], context: RunContext) -> dict[str, Tensor]:
        """Return the losses named in ``context.losses``; masks come from ``context.generator``."""
        options, ready = context.options, Batch(**batch)
        masks = draw_masks(
            ready.text,
            ready.text_mask,
            ready.video_mask,
            vocabulary=model.config.vocabulary,
            generator=context.generator,
            probability=options.mask_probability,
            at_least_one=options.at_least_one,
        )
        return task_losses(model, ready, masks, wanted=context.losses, settings=picked(LossSettings, options))

    def similarity(
        self, model: Univl, texts: Mapping[str, Tensor], videos: Iterable[Mapping[str, Tensor]], context: RunContext
    ) -> Tensor:
        """Return how well each text fits each video, (M, N), by the cross encoder or by cosines."""
        options: UnivlOptions = context.options
        parts = zip(*(texts[name].split(options.eval_batch_size) for name in ("text", "text_mask")), strict=True)
        batches = [{"text": text.to(context.device), "text_mask": mask.to(context.device)} for text, mask in parts]
        return similarity(
            model,
            join_batches([encode_texts(model, batch) for batch in batches]),
            join_batches([encode_videos(model, batch) for batch in videos]),
            scoring=options.scoring,
            pairs=options.pairs_per_pass or PAIRS_PER_PASS,
        )

    def scores_pairs_alone(self, context: RunContext) -> bool:
        """Return True: every pair has its own pass, or a cosine."""
        return True

    def captions(
        self, model: Univl, batch: Mapping[str, Tensor], encoder: Encoder, context: RunContext, *, count: int
    ) -> list[list[tuple[str, float]]]:
        """Return the hypotheses of beam search, best first, with the sums of their log probabilities."""
        wording, beams = cast(UnivlEncoder, encoder).wording, max(context.options.beams, count)
        ids, scores = describe(model, batch, beams=beams, length=wording.caption_length)
        said = [[wording.words(row) for row in rows] for rows in ids]
        return [list(zip(*pair, strict=True)) for pair in zip(said, scores.float().tolist(), strict=True)]

    def caption_scoring(self, options: UnivlOptions) -> CaptionScoring:
        """Return how captions are scored."""
        return CaptionScoring(options.caption_tokens, options.meteor)

    def sentiments(self, model: Univl, batch: Mapping[str, Tensor], context: RunContext) -> Tensor:
        """Return the sentiment of each clip, (B,)."""
        return sentiments(model, batch)

    def details(self, context: RunContext) -> Mapping[str, Any]:
        """Return how retrieval is scored, or how captions are generated and scored."""
        options: UnivlOptions = context.options
        of_task: dict[str, dict[str, Any]] = {
            "retrieval": {"scoring": options.scoring},
            "captioning": {"beams": options.beams, "references": "lower case, in pieces, cut, as released"},
        }
        return of_task.get(context.spec.task, {})
