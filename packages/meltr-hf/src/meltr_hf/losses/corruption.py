"""Texts that were changed at random, and what has to be found out about them. Nothing here waits for the device.

All random numbers come as uniform draws in [0, 1), whose number depends on shapes alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from meltr.devices import constant

IGNORED = -100
MASKED, RANDOM = 0.8, 0.1
"""Fraction of the chosen tokens that become the mask, and that become any token (Devlin et al. 2019, section 3.1)."""


class Draws(NamedTuple):
    """Uniform numbers for all losses of a batch of B texts with L tokens.

    Args:
        tokens: Shape (5, B, L).
        texts: Shape (2, B).
    """

    tokens: Tensor
    texts: Tensor


def draw(ids: Tensor, generator: torch.Generator | None) -> Draws:
    """Return new draws for token ids (B, L)."""

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=ids.device)

    return Draws(rand(5, *ids.shape), rand(2, len(ids)))


class Changed(NamedTuple):
    """Texts that were changed.

    Args:
        ids: Shape (B, L).
        mask: 1 for a token, 0 for padding; (B, L).
        wanted: What is to be found out: ids or -100, or 0, 1 per token; (B, T).
    """

    ids: Tensor
    mask: Tensor
    wanted: Tensor


def words_in(ids: Tensor, mask: Tensor, special: Sequence[int]) -> Tensor:
    """Return where a text has tokens that stand for words: neither padding nor special; (B, L), boolean."""
    return mask.bool() & ~torch.isin(ids, constant(tuple(special), ids.device))


def hide(ids: Tensor, mask: Tensor, words: Tensor, u: Tensor, *, token: int, vocabulary: int, rate: float) -> Changed:
    """Hide tokens by BERT's rule: of those chosen 80 % become the mask, 10 % any token, 10 % stay.

    Args:
        ids: Shape (B, L).
        mask: Shape (B, L).
        words: Where a token may be chosen, (B, L).
        u: Draws, (3, B, L): which are chosen, what becomes of them, and the random tokens.
        token: Id of the mask.
        vocabulary: V.
        rate: Probability that a token is chosen.
    """
    chosen = words & (u[0] < rate)
    drawn = (u[2] * vocabulary).long().clamp_max(vocabulary - 1)
    hidden = torch.where(u[1] < MASKED, token, torch.where(u[1] < MASKED + RANDOM, drawn, ids))
    return Changed(torch.where(chosen, hidden, ids), mask, torch.where(chosen, ids, IGNORED))


def replace(ids: Tensor, mask: Tensor, words: Tensor, u: Tensor, *, rate: float) -> Changed:
    """Replace tokens by others of a random text of the batch; a token that gets its own value counts as not replaced.

    Args:
        ids: Shape (B, L).
        mask: Shape (B, L).
        words: Where a token may be replaced, (B, L).
        u: Draws, (3, B, L): which are chosen, and the text and the place that their new values come from.
        rate: Probability that a token is chosen.

    Returns:
        Wanted is 1 where a token differs from the original and 0 where not, -100 where `words` is false.
    """
    order = (~words).long().argsort(dim=1, stable=True)  # Places of the words of each text, then all others.
    text = (u[1] * len(ids)).long().clamp_max(len(ids) - 1)
    count = words.sum(1)[text]
    place = torch.minimum((u[2] * count).long(), (count - 1).clamp_min(0))
    new = torch.where(words & (u[0] < rate) & (count > 0), ids[text, order[text, place]], ids)
    return Changed(new, mask, torch.where(words, (new != ids).long(), IGNORED))


def reorder(ids: Tensor, mask: Tensor, words: Tensor, u: Tensor) -> Changed:
    """Cut half of the texts in two spans of words and swap the spans.

    Args:
        ids: Shape (B, L).
        mask: Shape (B, L).
        words: Which tokens move, (B, L); texts with fewer than two stay as they are.
        u: Draws, (2, B): which texts, and where they are cut.

    Returns:
        Wanted is 1 for texts whose spans were swapped, (B, 1).
    """
    order, count = (~words).long().argsort(dim=1, stable=True), words.sum(1)
    cut = 1 + (u[1] * (count - 1)).long().clamp(min=0)
    swapped = (u[0] < 0.5) & (count > 1)
    rank = (words.cumsum(1) - 1).clamp_min(0)
    moved = (rank + torch.where(swapped, cut, 0)[:, None]) % count.clamp_min(1)[:, None]
    new = torch.where(words, ids.gather(1, order.gather(1, moved)), ids)
    return Changed(new, mask, swapped.long()[:, None])


def remove_spans(
    ids: Tensor, words: Tensor, u: Tensor, *, rate: float, length: int, stand_ins: Sequence[int], end: int, pad: int
) -> Changed:
    """Remove spans, each of which leaves a stand-in; wanted are the stand-ins, each with what it stands for (T5).

    The text ``a b c d e </s>`` without ``b c`` is ``a X d e </s>``, and ``X b c Y </s>`` is wanted. X and Y are the
    first and the second stand-in (Raffel et al. 2020, figure 2).

    Args:
        ids: Shape (B, L), with their padding at the end.
        words: Which tokens may be removed, (B, L).
        u: Draws, (B, L).
        rate: Fraction of tokens that is removed.
        length: Tokens per span, fewer at the end of a text; adjacent spans become one.
        stand_ins: Ids of the stand-ins, which limit the number of spans.
        end: Id of the token that ends a text.
        pad: Id of the padding.
    """
    gone = _spans(words, u, rate=rate, length=length)
    starts = gone & ~torch.nn.functional.pad(gone, (1, 0))[:, :-1]
    number = starts.cumsum(1) - 1
    gone = gone & (number < len(stand_ins) - 1)
    starts = starts & gone
    marks = constant(tuple(stand_ins), ids.device)
    sign = marks[number.clamp(0, len(stand_ins) - 1)]
    kept = ~gone | starts
    short, mask = _closed_up(torch.where(starts, sign, ids), kept & (ids != pad), pad)
    pairs = torch.stack([sign, ids], 2).flatten(1)
    last = marks[starts.sum(1).clamp_max(len(stand_ins) - 1)]
    tail = torch.stack([last, torch.full_like(last, end)], 1)
    use = torch.cat([torch.stack([starts, gone], 2).flatten(1), torch.ones_like(tail, dtype=torch.bool)], 1)
    return Changed(short, mask, _closed_up(torch.cat([pairs, tail], 1), use, IGNORED)[0])


def blank_spans(
    ids: Tensor, mask: Tensor, words: Tensor, u: Tensor, *, rate: float, length: int, token: int, pad: int
) -> Changed:
    """Put one mask in the place of each span; wanted is the whole text (BART, Lewis et al. 2020, text infilling).

    Args:
        ids: Shape (B, L), with their padding at the end.
        mask: Shape (B, L).
        words: Which tokens may be removed, (B, L).
        u: Draws, (B, L).
        rate: Fraction of tokens that is removed.
        length: Tokens per span.
        token: Id of the mask.
        pad: Id of the padding.
    """
    gone = _spans(words, u, rate=rate, length=length)
    starts = gone & ~torch.nn.functional.pad(gone, (1, 0))[:, :-1]
    short, there = _closed_up(torch.where(starts, token, ids), (~gone | starts) & mask.bool(), pad)
    return Changed(short, there, torch.where(mask.bool(), ids, IGNORED))


def _spans(words: Tensor, u: Tensor, *, rate: float, length: int) -> Tensor:
    """Return which tokens lie in a random span: those within `length` after a start; (B, L), boolean."""
    starts = (u < 1 - (1 - rate) ** (1 / length)).float()  # So that a token is in no span with probability 1 - rate.
    near = torch.nn.functional.max_pool1d(torch.nn.functional.pad(starts, (length - 1, 0))[:, None], length, 1)[:, 0]
    return words & near.bool()


def _closed_up(ids: Tensor, kept: Tensor, fill: int) -> tuple[Tensor, Tensor]:
    """Return the kept tokens of every row at its start, the rest filled, and the mask of the kept ones."""
    order = (~kept).long().argsort(dim=1, stable=True)
    there = kept.gather(1, order)
    return torch.where(there, ids.gather(1, order), fill), there.long()
