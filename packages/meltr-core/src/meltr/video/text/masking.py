"""Masked language modelling as in BERT (Devlin et al. 2019, section 3.1): selection and replacement of tokens.

Tokens are chosen with probability 0.15. Of the chosen ones 80 % become [MASK], 10 % a random token, and 10 % stay.
[CLS], [SEP] and [PAD] are never chosen. A backbone combines the functions below, and the order of its calls is the
order of its draws. The number of draws depends only on shapes. So nothing waits for the device, and a replayed
generator gives the same masks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from meltr.metrics.classification import IGNORED
from meltr.video.draws import uniform
from meltr.video.text.wordpiece import CLS, MASK, PAD, SEP

PROBABILITY = 0.15
"""Fraction of tokens that is chosen on average; with whole words, fraction of the padded length."""

MASKED, RANDOM = 0.8, 0.1
"""Fraction of the chosen tokens that become [MASK], and that become a random token of the whole vocabulary."""


class MaskedTexts(NamedTuple):
    """Texts with hidden tokens.

    Args:
        ids: Shape (..., L).
        labels: The original id where a token is to be predicted, -100 elsewhere; same shape as `ids`.
    """

    ids: Tensor
    labels: Tensor


def normal_tokens(ids: Tensor) -> Tensor:
    """Return where a text has tokens that may be hidden: not [CLS], [SEP] or [PAD]; same shape as `ids`."""
    return (ids != CLS) & (ids != SEP) & (ids != PAD)


def choose(able: Tensor, *, generator: torch.Generator | None, probability: float = PROBABILITY) -> Tensor:
    """Choose positions independently, each with the same probability.

    Args:
        able: True where a position may be chosen, (B, L).
        generator: Source of randomness; None: torch's global one.
        probability: p, in [0, 1].

    Returns:
        (B, L), boolean.
    """
    return able & (uniform(able.shape, able.device, generator) < probability)


def given_one(able: Tensor, chosen: Tensor, u: Tensor, *, probability: float = PROBABILITY) -> Tensor:
    """Turn independent choices into choices conditioned on at least one per row.

    Published code repeats the whole draw until something is chosen, which never ends if nothing can be. This gives the
    same distribution without repetition. With n positions and q = 1 - p, the first chosen position has number k with
    probability p q^k / (1 - q^n); later positions are chosen independently. A row without positions gets none.

    Args:
        able: True where a position may be chosen, (B, L).
        chosen: Independent choices among them, as from `choose`, (B, L).
        u: Uniform in [0, 1), (B, 1): determines the first chosen position.
        probability: p, in (0, 1].
    """
    q = torch.tensor(1 - probability, dtype=torch.float64)
    count = able.sum(1, keepdim=True)
    number = (torch.log1p(-u.double() * (1 - q**count)) / q.log()).floor().long()
    number = torch.minimum(number, (count - 1).clamp_min(0))
    rank = able.cumsum(1) - 1
    return able & ((rank == number) | (chosen & (rank > number)))


def choose_words(ids: Tensor, continues: Tensor, *, generator: torch.Generator | None) -> Tensor:
    """Choose whole words in random order, as long as they fit into max(1, round(0.15 L)) tokens.

    As in the collator of the public repository huggingface/transformers 4.2.1, L is the padded length, and every [PAD]
    is a word that uses up budget but is not chosen in the end. So short texts lose fewer than 0.15 L tokens.

    Args:
        ids: (B, L), padded.
        continues: True where a token continues the word before (``##ing``), (B, L).
        generator: Source of randomness; None: torch's global one.

    Returns:
        (B, L), boolean.
    """
    length = ids.shape[1]
    budget = max(1, round(PROBABILITY * length))
    framing = (ids == CLS) | (ids == SEP)
    starts = ~framing & ~(continues & (~framing).cumsum(1).gt(1))
    word = starts.cumsum(1) - 1  # -1 for [CLS], whose draw is not used
    sizes = torch.zeros_like(ids).scatter_add_(1, word.clamp_min(0), (~framing).long())
    order = torch.where(sizes > 0, uniform(ids.shape, ids.device, generator), 2.0).argsort(1)
    taken = torch.zeros_like(ids, dtype=torch.bool)
    used = torch.zeros(len(ids), 1, dtype=torch.long, device=ids.device)
    for place in range(length):
        turn = order[:, place : place + 1]
        size = sizes.gather(1, turn)
        fits = (size > 0) & (used + size <= budget)
        taken.scatter_(1, turn, fits)
        used += size * fits
    return taken.gather(1, word.clamp_min(0)) & normal_tokens(ids)


def mask_out(ids: Tensor, chosen: Tensor) -> MaskedTexts:
    """Replace all chosen tokens by [MASK]; nothing is drawn.

    Args:
        ids: Shape (..., L).
        chosen: Same shape, boolean.
    """
    return MaskedTexts(torch.where(chosen, MASK, ids), torch.where(chosen, ids, IGNORED))


def hide(ids: Tensor, chosen: Tensor, *, vocabulary: int, generator: torch.Generator | None) -> MaskedTexts:
    """Replace the chosen tokens by BERT's rule: 80 % [MASK], 10 % a random token, 10 % stay.

    Args:
        ids: (B, L).
        chosen: Same shape, boolean.
        vocabulary: V, the number of tokens to draw random ones from.
        generator: Source of randomness; None: torch's global one.
    """
    fate = uniform(ids.shape, ids.device, generator)
    drawn = (uniform(ids.shape, ids.device, generator) * vocabulary).long().clamp_max(vocabulary - 1)
    hidden = torch.where(fate < MASKED, MASK, torch.where(fate < MASKED + RANDOM, drawn, ids))
    return MaskedTexts(torch.where(chosen, hidden, ids), torch.where(chosen, ids, IGNORED))
