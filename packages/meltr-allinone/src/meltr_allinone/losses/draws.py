"""The random choices of a batch: masked tokens, right and wrong videos, and the order of patches.

All are drawn from one generator in a fixed order that does not depend on the losses. So a loss has the same value alone
and among others, and a replayed generator gives the same losses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from meltr.video.draws import uniform
from meltr.video.text.masking import MaskedTexts, choose, choose_words, hide, normal_tokens
from meltr_allinone.model.all_in_one import AllInOne


@dataclass(frozen=True)
class Draws:
    """The random choices of a batch.

    Args:
        masked: Texts with masked tokens.
        labels: 1 where matching sees the right video, 0 where it sees a wrong one, (B,).
        chances: Uniform numbers in [0, 1) that select wrong videos of the batch, (B,).
        orders: Order of patches, (pairs T, N), of the joint passes ``mlm``, ``vtm``, ``rank`` and ``answer`` whose
            heads the model has; empty for raster order.
    """

    masked: MaskedTexts
    labels: Tensor
    chances: Tensor
    orders: Mapping[str, Tensor]


def draw(
    model: AllInOne,
    ids: Tensor,
    *,
    frames: int,
    generator: torch.Generator | None,
    continues: Tensor | None = None,
    wrong_texts: int | None = None,
    random_order: bool = True,
) -> Draws:
    """Draw the random choices of a batch.

    Args:
        model: The model, for its sizes and heads.
        ids: Token ids (B, L).
        frames: T.
        generator: Source of randomness; None: torch's global one.
        continues: True where a token continues the previous word, to mask whole words; None: mask single tokens.
        wrong_texts: F, wrong texts that come with each clip for ranking; None: rank among the texts of the batch.
        random_order: True: patches in random order, as published; False: in raster order.
    """
    size = len(ids)
    masked = mask_texts(ids, vocabulary=model.config.vocabulary, generator=generator, continues=continues)
    labels = draw_labels(size, device=ids.device, generator=generator)
    chances = uniform((size,), ids.device, generator)
    pairs = {"mlm": size, "vtm": size, "rank": size * (size if wrong_texts is None else 1 + wrong_texts)}
    pairs["answer"] = size
    heads = {"mlm": model.mlm_score, "vtm": model.itm_score, "rank": model.rank_output, "answer": model.vqa_classifier}
    orders = {
        name: draw_order(count, model.config.patches, frames=frames, device=ids.device, generator=generator)
        for name, count in pairs.items()
        if random_order and heads[name] is not None
    }
    return Draws(masked, labels, chances, orders)


def mask_texts(
    ids: Tensor, *, vocabulary: int, generator: torch.Generator | None, continues: Tensor | None = None
) -> MaskedTexts:
    """Mask tokens of texts by BERT's rule. A text without words, such as [CLS] [SEP], keeps all tokens.

    Args:
        ids: (B, L), padded.
        vocabulary: V, the number of tokens to draw random ones from.
        generator: Source of randomness; None: torch's global one.
        continues: True where a token continues the previous word (``##ing``), (B, L): whole words are chosen. None:
            tokens are chosen one by one.
    """
    if continues is None:
        chosen = choose(normal_tokens(ids), generator=generator)
    else:
        chosen = choose_words(ids, continues, generator=generator)
    return hide(ids, chosen, vocabulary=vocabulary, generator=generator)


def draw_labels(size: int, *, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Draw which of a batch keep their video: floor(B / 2) of them, but the only one if B = 1; int64 (B,)."""
    places = uniform((size,), device, generator).argsort().argsort()
    return (places < max(1, size // 2)).long()


def draw_order(
    pairs: int, patches: int, *, frames: int, device: torch.device, generator: torch.Generator | None
) -> Tensor:
    """Draw an order of the patches for every frame of every pair: slot -> raster patch, (pairs T, N)."""
    return uniform((pairs * frames, patches), device, generator).argsort(1)
