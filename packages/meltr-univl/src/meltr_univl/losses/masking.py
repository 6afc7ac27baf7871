"""Which words and frames are hidden, drawn from a given generator (Luo et al., arXiv 2002.06353, section 3.2).

MELTR's released loader repeats the whole draw until something is hidden, which never ends for a clip without frames.
The same distribution is drawn here in one go: the first hidden place from its law given that there is one, and those
behind it independently. How much is drawn depends on shapes alone.
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
    """What is hidden in a batch.

    Args:
        ids: Token ids with hidden words, (B, W).
        labels: The original id where a word is to be predicted, -100 elsewhere, (B, W).
        frames: True at frames that are hidden, (B, F).
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
    """Hide words and frames. [CLS], [SEP] and padding stay; texts without words and clips without frames lose nothing.

    Args:
        ids: Token ids, (B, W).
        text_mask: 1 at real tokens, (B, W).
        video_mask: 1 at real frames, (B, F).
        vocabulary: V, where random tokens come from.
        generator: Source of randomness; None: torch's global one.
        probability: Of each word and frame.
        at_least_one: Hide at least one word of every text and one frame of every clip, as MELTR's loaders (UniVL's own
            do not).
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
    """Choose places of each row with a probability, independently; (B, L), boolean.

    Args:
        able: True where a place may be chosen, (B, L).
        generator: Source of randomness; None: torch's global one.
        probability: p, in [0, 1].
        at_least_one: Given that at least one place of the row is chosen (if it has any, and p > 0).
    """
    first = uniform((len(able), 1), able.device, generator)
    chosen = choose(able, generator=generator, probability=probability)
    if not at_least_one or probability == 0:
        return chosen
    return given_one(able, chosen, first, probability=probability)
