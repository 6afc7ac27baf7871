"""VIOLET as a video backbone: its model, losses, weights and scores for the hooks of `meltr.video.VideoAdapter`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from meltr.context import RunContext
from meltr.hookspecs import hookimpl
from meltr.video import Corpus, Labels, Source, VideoAdapter
from meltr.video.options import picked
from meltr.video.text.wordpiece import Tokenizer
from meltr.weights import LoadReport
from meltr_violet.data.choice_texts import PROMPT_WORDS
from meltr_violet.data.encoder import VioletEncoder, as_batch
from meltr_violet.data.source import SAMPLER, VioletSource, open_source
from meltr_violet.losses.tasks import LossSettings, draw_batch_masks, task_losses
from meltr_violet.model.building import heads_of, model_config
from meltr_violet.model.scoring import PAIRS_PER_PASS, answer_logits, choice_logits, score_pairs
from meltr_violet.model.violet import Violet
from meltr_violet.options import VioletOptions
from meltr_violet.weights.pretrained import load_bert, load_checkpoint, load_video_swin


class VioletAdapter(VideoAdapter[Violet]):
    """Question answering, retrieval and action recognition with VIOLET."""

    sampler = SAMPLER
    published_weights = "ckpt_violet_pretrain.pt"

    def open_source(self, context: RunContext) -> Source:
        """Return the data set in published or in prepared form, with its visual codes."""
        return open_source(context)

    def encoder(self, source: Source, tokenizer: Tokenizer, labels: Labels, context: RunContext) -> VioletEncoder:
        """Return the encoder, which turns items into tensors; training examples have codes for the loss ``mvm``."""
        codes = source.codes if isinstance(source, VioletSource) and "mvm" in context.losses else None
        return VioletEncoder(
            tokenizer, labels, frames=source.media, codes=codes, choice_text=context.options.choice_text
        )

    def extra_words(self, corpus: Corpus, options: VioletOptions) -> Sequence[str]:
        """Return the words of the multiple-choice prompt."""
        return PROMPT_WORDS

    def make_model(self, meta: Mapping[str, Any], context: RunContext) -> Violet:
        """Return the model with the heads that the task and its losses need."""
        spec, options = context.spec, context.options
        return Violet(
            model_config(options, meta),
            heads=heads_of(spec.task, spec.losses, choices="choices" in meta),
            answers=len(meta.get("answers", ())),
            answer_dropout=options.answer_dropout,
        )

    def load_weights(self, model: Violet, options: VioletOptions) -> Sequence[LoadReport]:
        """Load a VIOLET checkpoint, or else Video Swin and BERT if they are given."""
        if options.weights is not None:
            return [load_checkpoint(model, options.weights, fc=options.fc)]
        given = ((load_video_swin, options.video_swin), (load_bert, options.bert))
        return [load(model, path) for load, path in given if path is not None]

    @hookimpl
    def model_blocks(self, model: Violet) -> Sequence[nn.Module]:
        """Return the blocks of Video Swin and the layers of the transformer."""
        return model.blocks()

    def losses(self, model: Violet, batch: Mapping[str, Tensor], context: RunContext) -> dict[str, Tensor]:
        """Return the losses named in ``context.losses``; masks come from ``context.generator``."""
        settings, ready = picked(LossSettings, context.options), as_batch(batch)
        masks = draw_batch_masks(ready, model.config.cell, settings=settings, generator=context.generator)
        return task_losses(model, ready, masks, wanted=context.losses, settings=settings)

    def answer_logits(self, model: Violet, batch: Mapping[str, Tensor], context: RunContext) -> Tensor:
        """Return the logits of answers, classes or choices, (B, A), on unmasked clips."""
        if batch["ids"].dim() == 3:
            return choice_logits(model, batch["frames"], batch["ids"], pairs_per_pass=_pairs(context))
        return answer_logits(model, batch["frames"], batch["ids"])

    def similarity(
        self, model: Violet, texts: Mapping[str, Tensor], videos: Iterable[Mapping[str, Tensor]], context: RunContext
    ) -> Tensor:
        """Return how well each text fits each video, (M, N), by the matching head on every pair."""
        encoded = torch.cat([model.encode_video(batch["frames"]) for batch in videos])
        return score_pairs(model, encoded, texts["ids"].to(context.device), pairs_per_pass=_pairs(context))

    def scores_pairs_alone(self, context: RunContext) -> bool:
        """Return True: every pair goes through the matching head by itself."""
        return True


def _pairs(context: RunContext) -> int:
    return int(context.options.pairs_per_pass or PAIRS_PER_PASS)
