"""Which words and frames are hidden, drawn from a given generator (Luo et al., arXiv 2002.06353, section 3.2).

MELTR's released loader repeats the whole draw until something is hidden, which never ends for a clip without frames.
The same distribution is drawn here in one go: the first hidden place from its law given that there is one, and those
behind it independently. How much is drawn depends on shapes alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from meltr.video.text.wordpiece import MASK

PROBABILITY = 0.15
MASKED, RANDOM = 0.8, 0.1
"""Of the chosen words: part that becomes [MASK], part that becomes a random token of the whole vocabulary."""

IGNORED = -1
"""Label of a word that need not be predicted."""


@dataclass(frozen=True)
class Masks:
    """What is hidden in a batch.

    Args:
        ids: Token ids with hidden words, (B, W).
        labels: The original id where a word is to be predicted, -1 elsewhere, (B, W).
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
    draw = {"generator": generator, "probability": probability, "at_least_one": at_least_one}
    chosen = choose(words, **draw)  # type: ignore[arg-type]
    fate = _uniform(ids.shape, ids.device, generator)
    drawn = (_uniform(ids.shape, ids.device, generator) * vocabulary).long().clamp_max(vocabulary - 1)
    hidden = torch.where(fate < MASKED, MASK, torch.where(fate < MASKED + RANDOM, drawn, ids))
    frames = choose(video_mask.bool(), **draw)  # type: ignore[arg-type]
    return Masks(torch.where(chosen, hidden, ids), torch.where(chosen, ids, IGNORED), frames)


def choose(
    able: Tensor, *, generator: torch.Generator | None, probability: float = PROBABILITY, at_least_one: bool = True
) -> Tensor:
    """Choose places of each row with a probability, independently; (B, L), boolean.

    Args:
        able: True where a place may be chosen, (B, L).
        generator: Source of randomness; None: torch's global one.
        probability: p, in [0, 1].
        at_least_one: Given that at least one place of the row is chosen (if it has any, and p > 0). With n places and
            q = 1 - p the first of them then has number k with probability p q^k / (1 - q^n).
    """
    first = _uniform((len(able), 1), able.device, generator)
    chosen = able & (_uniform(able.shape, able.device, generator) < probability)
    if not at_least_one or probability == 0:
        return chosen
    kept = torch.tensor(1 - probability, dtype=torch.float64)
    rank = able.cumsum(1) - 1
    count = able.sum(1, keepdim=True)
    number = (torch.log1p(-first.double() * (1 - kept**count)) / kept.log()).floor().long()
    number = torch.minimum(number, (count - 1).clamp_min(0))
    return able & ((rank == number) | (chosen & (rank > number)))


def _uniform(shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None) -> Tensor:
    drawn_on = device if generator is None else generator.device
    return torch.rand(shape, device=drawn_on, generator=generator).to(device)
