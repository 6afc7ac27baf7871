"""All-in-one as a video backbone: model, losses, weights and scores for the hooks of `meltr.video.VideoAdapter`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from meltr.context import RunContext
from meltr.hookspecs import hookimpl
from meltr.optim.building import decay_groups
from meltr.video import Corpus, Labels, Source, VideoAdapter
from meltr.video.options import picked
from meltr.video.tasks.reranking import Scores
from meltr.video.text.wordpiece import Tokenizer
from meltr.weights import LoadReport
from meltr_allinone.data.encoder import AllInOneEncoder, Wanted
from meltr_allinone.data.source import clips_of_files, open_source
from meltr_allinone.data.transforms import normalised
from meltr_allinone.losses.draws import draw
from meltr_allinone.losses.tasks import LossSettings, as_batch, task_losses
from meltr_allinone.model.all_in_one import AllInOne
from meltr_allinone.model.building import build_model, scoring_of
from meltr_allinone.model.retrieval import Retrieval
from meltr_allinone.model.scoring import PAIRS_PER_PASS, answer_logits, seeded_orders
from meltr_allinone.options import AllInOneOptions
from meltr_allinone.weights.pretrained import load_pretrained

NO_DECAY = ("bias", "LayerNorm.weight", "norm.weight", "norm1.weight", "norm2.weight")
"""Parameters with one of these in their name get no weight decay, as in the public repositories."""


class AllInOneAdapter(VideoAdapter[AllInOne]):
    """Retrieval and question answering with All-in-one."""

    published_weights = "all-in-one-plus-224.ckpt"

    def open_source(self, context: RunContext) -> Source:
        """Return the data set with clips for training and for evaluation."""
        return open_source(context)

    def open_files(self, corpus: Corpus, meta: Mapping[str, Any], context: RunContext) -> Source:
        """Return files of the user, sampled as in evaluation."""
        return Source(corpus, clips_of_files(corpus.media, context.options))

    def encoder(self, source: Source, tokenizer: Tokenizer, labels: Labels, context: RunContext) -> AllInOneEncoder:
        """Return the encoder, which turns items into tensors."""
        options: AllInOneOptions = context.options
        wanted = Wanted(
            options.image_size,
            options.augmentation,
            whole_words=options.whole_words,
            false_video=options.false_videos == "dataset" and "vtm" in context.losses,
            false_texts=options.false_texts if "rank" in context.losses else 0,
            any_item=options.false_items == "any",
        )
        return AllInOneEncoder(tokenizer, labels, clips=source.media, wanted=wanted)

    def make_model(self, meta: Mapping[str, Any], context: RunContext) -> AllInOne:
        """Return the model with the heads that the task, its losses and its scoring need."""
        return build_model(context.options, meta, task=context.spec.task, losses=context.spec.losses)

    def load_weights(self, model: AllInOne, options: AllInOneOptions) -> Sequence[LoadReport]:
        """Load an official checkpoint, or one of a run."""
        return [] if options.weights is None else [load_pretrained(model, options.weights)]

    @hookimpl
    def parameter_groups(self, model: AllInOne, context: RunContext) -> Sequence[Mapping[str, Any]]:
        """Exclude biases and norms from weight decay; scale the learning rate of the answer head."""
        scales = {"vqa_classifier": context.options.answer_lr_scale}
        return decay_groups(model, spared=NO_DECAY, lr_scales=scales)

    @hookimpl
    def model_blocks(self, model: AllInOne) -> Sequence[nn.Module]:
        """Return the blocks of the transformer."""
        return model.blocks()

    def losses(self, model: AllInOne, batch: Mapping[str, Tensor], context: RunContext) -> dict[str, Tensor]:
        """Return the losses named in ``context.losses``; all random numbers come from ``context.generator``."""
        options: AllInOneOptions = context.options
        ready = as_batch(batch, options.normalisation)
        drawn = draw(
            model,
            ready.ids,
            frames=ready.video.shape[1],
            generator=context.generator,
            continues=ready.continues,
            wrong_texts=None if ready.false_ids is None else ready.false_ids.shape[1],
            random_order=options.patch_order == "random",
        )
        settings = picked(LossSettings, options)
        return task_losses(model, ready, drawn, wanted=context.losses, settings=settings)

    def answer_logits(self, model: AllInOne, batch: Mapping[str, Tensor], context: RunContext) -> Tensor:
        """Return the logits of the answers, (B, A); the order of patches depends on the example's number."""
        video = normalised(batch["video"], context.options.normalisation)
        size, frames = video.shape[:2]
        orders = seeded_orders(model, size, frames, seed=_order_seed(context), start=int(batch["number"][0]))
        return answer_logits(model, video, batch["ids"], orders=orders)

    def similarity(
        self, model: AllInOne, texts: Mapping[str, Tensor], videos: Iterable[Mapping[str, Tensor]], context: RunContext
    ) -> Scores:
        """Return how well each text fits each video, by the dual encoder, joint passes, or both."""
        options: AllInOneOptions = context.options
        how = Retrieval(
            scoring=scoring_of(options, context.spec.losses),
            rerank=options.rerank,
            order_seed=_order_seed(context),
            pairs_per_pass=options.pairs_per_pass or PAIRS_PER_PASS,
        )
        return how.scores(model, texts["ids"], (normalised(each["video"], options.normalisation) for each in videos))

    def scores_pairs_alone(self, context: RunContext) -> bool:
        """Return True unless pairs are re-ranked, or the order of patches is drawn for all videos together."""
        scoring = scoring_of(context.options, context.spec.losses)
        return scoring == "dual" or (scoring == "joint" and _order_seed(context) is None)

    def views(self, context: RunContext) -> int:
        """Return the number of random clips per video whose scores are averaged."""
        return int(context.options.retrieval_views)


def _order_seed(context: RunContext) -> int | None:
    """Return the seed for the order of patches in joint passes; None: raster order."""
    return context.spec.seed if context.options.patch_order == "random" else None
