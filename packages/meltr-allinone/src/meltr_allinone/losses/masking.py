"""Which tokens masked language modelling hides, drawn from a given generator.

The rules of the collators of public repository huggingface/transformers 4.2.1, which All-in-one trains with: of the
chosen tokens 80 % become [MASK], 10 % a random token of the whole vocabulary, 10 % stay. The number of draws depends on
shapes alone, so that a replayed generator gives the same masks and nothing waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from meltr.video.text.wordpiece import CLS, MASK, PAD, SEP

PROBABILITY = 0.15
"""Part of the tokens that is chosen: on average, or of the padded length with whole words."""

MASKED, RANDOM = 0.8, 0.1
"""Of the chosen tokens: part that becomes [MASK], part that becomes a random token."""

IGNORED = -100
"""Label of a token that need not be predicted."""


@dataclass(frozen=True)
class MaskedTexts:
    """Texts with hidden tokens.

    Args:
        ids: (B, L).
        labels: The original id where a token is to be predicted, -100 elsewhere, (B, L).
    """

    ids: Tensor
    labels: Tensor


def mask_texts(
    ids: Tensor, *, vocabulary: int, generator: torch.Generator | None, continues: Tensor | None = None
) -> MaskedTexts:
    """Hide tokens of texts. A text without words, such as [CLS] [SEP], loses none.

    Args:
        ids: (B, L), padded.
        vocabulary: V, where random tokens come from.
        generator: Source of randomness; None: torch's global one.
        continues: True where a token goes on with the word before (``##ing``), (B, L): whole words are chosen. None:
            tokens are chosen one by one.
    """
    chosen = draw_tokens(ids, generator) if continues is None else draw_words(ids, continues, generator)
    fate = _uniform(ids, generator)
    drawn = (_uniform(ids, generator) * vocabulary).long().clamp_max(vocabulary - 1)
    hidden = torch.where(fate < MASKED, MASK, torch.where(fate < MASKED + RANDOM, drawn, ids))
    return MaskedTexts(torch.where(chosen, hidden, ids), torch.where(chosen, ids, IGNORED))


def draw_tokens(ids: Tensor, generator: torch.Generator | None) -> Tensor:
    """Choose every token but [CLS], [SEP] and [PAD] with the same probability, independently; (B, L)."""
    return _words(ids) & (_uniform(ids, generator) < PROBABILITY)


def draw_words(ids: Tensor, continues: Tensor, generator: torch.Generator | None) -> Tensor:
    """Choose whole words in random order, as long as they fit into max(1, round(0.15 L)) tokens; (B, L).

    L is the padded length, and every [PAD] is a word that uses up budget but is not chosen in the end: short texts lose
    fewer than 0.15 L tokens. That is how the original behaves.

    Args:
        ids: (B, L).
        continues: True where a token goes on with the word before, (B, L).
        generator: Source of randomness; None: torch's global one.
    """
    length = ids.shape[1]
    budget = max(1, round(PROBABILITY * length))
    framing = (ids == CLS) | (ids == SEP)
    starts = ~framing & ~(continues & (~framing).cumsum(1).gt(1))
    word = starts.cumsum(1) - 1  # that of [CLS] is -1; no draw of theirs is used
    sizes = torch.zeros_like(ids).scatter_add_(1, word.clamp_min(0), (~framing).long())
    order = torch.where(sizes > 0, _uniform(ids, generator), 2.0).argsort(1)
    taken = torch.zeros_like(ids, dtype=torch.bool)
    used = torch.zeros(len(ids), 1, dtype=torch.long, device=ids.device)
    for place in range(length):
        turn = order[:, place : place + 1]
        size = sizes.gather(1, turn)
        fits = (size > 0) & (used + size <= budget)
        taken.scatter_(1, turn, fits)
        used += size * fits
    return taken.gather(1, word.clamp_min(0)) & _words(ids)


def _words(ids: Tensor) -> Tensor:
    return ~torch.isin(ids, torch.tensor((CLS, SEP, PAD), device=ids.device))


def _uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = like.device if generator is None else generator.device
    return torch.rand(like.shape, device=device, generator=generator).to(like.device)
