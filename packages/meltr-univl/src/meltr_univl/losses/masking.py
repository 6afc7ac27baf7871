"""Random masks of words and frames, from a given generator (Luo et al., arXiv 2002.06353, section 3.2).

MELTR's released loader repeats the whole draw until something is masked, which never ends for a clip without frames.
Here the same distribution is drawn at once: the first masked position conditioned on there being one, and later ones
independently. The number of draws depends only on shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from meltr.video.draws import uniform
from meltr.video.text.masking import PROBABILITY, choose, given_one, hide


@dataclass(frozen=True)
class Masks:
    """The masks of a batch.

    Args:
        ids: Token ids with masked words, (B, W).
        labels: The original id where a word is to be predicted, -100 elsewhere, (B, W).
        frames: True at masked frames, (B, F).
    """

    ids: Tensor
    labels: Tensor
    frames: Tensor


def draw_masks(
    ids: Tensor,
    text_mask: Tensor,
    video_mask: Tensor,
    *,
    vocabulary: int,
    generator: torch.Generator | None,
    probability: float = PROBABILITY,
    at_least_one: bool = True,
) -> Masks:
    """Mask words and frames. [CLS], [SEP] and padding stay; texts without words and clips without frames lose nothing.

    Args:
        ids: Token ids, (B, W).
        text_mask: 1 at real tokens, (B, W).
        video_mask: 1 at real frames, (B, F).
        vocabulary: V, the number of tokens to draw random ones from.
        generator: Source of randomness; None: torch's global one.
        probability: Probability of each word and frame.
        at_least_one: Mask at least one word of every text and one frame of every clip, as MELTR's loaders do (UniVL's
            own do not).
    """
    places = torch.arange(ids.shape[1], device=ids.device)
    lengths = text_mask.sum(1, keepdim=True)
    words = (places > 0) & (places < lengths - 1)
    draw = partial(draw_places, generator=generator, probability=probability, at_least_one=at_least_one)
    masked = hide(ids, draw(words), vocabulary=vocabulary, generator=generator)
    return Masks(masked.ids, masked.labels, draw(video_mask.bool()))


def draw_places(
    able: Tensor, *, generator: torch.Generator | None, probability: float = PROBABILITY, at_least_one: bool = True
) -> Tensor:
    """Choose positions in each row independently with a given probability; (B, L), boolean.

    Args:
        able: True where a position may be chosen, (B, L).
        generator: Source of randomness; None: torch's global one.
        probability: p, in [0, 1].
        at_least_one: Condition on at least one chosen position per row (if it has any, and p > 0).
    """
    first = uniform((len(able), 1), able.device, generator)
    chosen = choose(able, generator=generator, probability=probability)
    if not at_least_one or probability == 0:
        return chosen
    return given_one(able, chosen, first, probability=probability)
