"""Beam search as in UniVL's evaluation, with cached keys and values.

A score is a sum of log-probabilities without length normalisation. The search ends when the *best* hypothesis has just
produced [SEP]. A lower-ranked hypothesis that has ended continues with [PAD], as the decoder has learned to, and may
still become the best.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from meltr.errors import UserError
from meltr.video.text.wordpiece import CLS, SEP
from meltr_univl.model.univl import Univl

NOTHING = -1
"""Filler after the end of a hypothesis."""


class Hypotheses(NamedTuple):
    """The hypotheses of every example, best first.

    Args:
        ids: Tokens without [CLS], (B, K, L), -1 after the end.
        scores: Sums of log-probabilities, (B, K).
    """

    ids: Tensor
    scores: Tensor


def check_beams(beams: int, vocabulary: int) -> None:
    """Raise a `UserError` if there are more hypotheses (`beams`) than possible first tokens (`vocabulary`)."""
    if beams > vocabulary:
        raise UserError(
            f"Beam search cannot keep {beams:,} hypotheses: the vocabulary has {vocabulary:,} tokens.",
            f"Use --set beams=5, or another number up to {vocabulary}; meltr predict needs at least as many as --top.",
        )


@torch.no_grad()
def beam_search(model: Univl, memory: Tensor, memory_mask: Tensor, *, beams: int = 5, length: int = 48) -> Hypotheses:
    """Generate captions for a batch of examples.

    Args:
        model: The model, with the part ``decoder``, in eval mode.
        memory: States of the cross encoder, (B, M, H).
        memory_mask: 1 at real positions, (B, M).
        beams: K, at most V.
        length: Maximum number of tokens in a caption.

    Raises:
        UserError: If K is larger than V.
    """
    check_beams(beams, model.config.vocabulary)
    size, device = len(memory), memory.device
    ids = torch.full((size, beams, length), NOTHING, dtype=torch.long, device=device)
    exact = torch.promote_types(memory.dtype, torch.float32)  # half precision cannot resolve sums of ten or more
    scores = torch.zeros(size, beams, dtype=exact, device=device)
    going = torch.arange(size, device=device)
    kept = model.start_decoding(memory, memory_mask)
    last, sums, tokens = torch.full((size, 1), CLS, device=device), scores[:, :1], ids[:, :1, :0]
    for _ in range(length):
        if len(going) == 0:
            break
        logits, kept = model.decode_step(last, kept)
        totals = sums[..., None] + logits.to(exact).log_softmax(-1)
        sums, places = totals.flatten(1).topk(beams)
        parents, last = places // logits.shape[-1], places % logits.shape[-1]
        tokens = torch.cat([tokens.gather(1, parents[..., None].expand(-1, -1, tokens.shape[2])), last[..., None]], 2)
        scores[going], ids[going, :, : tokens.shape[2]] = sums, tokens
        open_ = last[:, 0] != SEP
        rows = torch.arange(len(going), device=device)[:, None] * totals.shape[1] + parents
        kept = kept.reordered(rows[open_].flatten(), None if open_.all() else open_.nonzero()[:, 0])
        going, last, sums, tokens = going[open_], last[open_], sums[open_], tokens[open_]
    return Hypotheses(ids, scores)
