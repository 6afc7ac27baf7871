"""Score pairs of texts and videos with joint passes.

Each video is embedded once, and pairs go through the model in chunks. The order of patches is passed in, or drawn from
a seed for each video, so that a score depends neither on the batch nor on the other videos.
"""

from __future__ import annotations

import torch
from torch import Tensor

from meltr.seeding import derive
from meltr_allinone.losses.draws import draw_order
from meltr_allinone.model.all_in_one import AllInOne

PAIRS_PER_PASS = 64


def pooled_pairs(
    model: AllInOne,
    video: Tensor,
    ids: Tensor,
    *,
    clips: Tensor,
    texts: Tensor,
    order: Tensor | None = None,
    pairs_per_pass: int | None = None,
) -> Tensor:
    """Return the pooled state of each pair, (P, D).

    Frames may be on another device than the model (retrieval among many). Pairs are moved when they are needed.

    Args:
        model: The model.
        video: Tokens of frames, (N, T, l, D), from `AllInOne.embed_video`.
        ids: Token ids (M, L).
        clips: Video index of each pair, (P,).
        texts: Text index of each pair, (P,).
        order: Order of the patches of each pair's frames, (P T, patches); None: raster.
        pairs_per_pass: Maximum number of pairs per forward pass; None: all at once.
    """
    device, frames = next(model.parameters()).device, video.shape[1]
    size = pairs_per_pass or max(1, len(clips))
    states = []
    for start in range(0, len(clips), size):
        clip, which = clips[start : start + size], texts[start : start + size]
        own = None if order is None else order[start * frames : (start + size) * frames].to(device)
        read = ids[which].to(device)
        states.append(model.pooler(model.join(model.embed_text(read), read, video[clip].to(device), own)))
    return torch.cat(states) if states else video.new_empty(0, video.shape[-1]).to(device)


def seeded_orders(model: AllInOne, videos: int, frames: int, *, seed: int | None, start: int = 0) -> Tensor | None:
    """Return an order of patches for every frame of N videos, (N, T, patches).

    The order of a video depends only on the seed and on the index of the video.

    Args:
        model: The model, for the number of patches.
        videos: N.
        frames: T.
        seed: Seed of the orders; None: return None, which means raster order.
        start: Index of the first video.
    """
    if seed is None:
        return None
    generators = (torch.Generator().manual_seed(derive(seed, "patches", start + number)) for number in range(videos))
    device, patches = torch.device("cpu"), model.config.patches
    rows = [draw_order(1, patches, frames=frames, device=device, generator=generator) for generator in generators]
    return torch.stack(rows)


@torch.no_grad()
def joint_scores(
    model: AllInOne,
    video: Tensor,
    ids: Tensor,
    *,
    clips: Tensor,
    texts: Tensor,
    orders: Tensor | None = None,
    pairs_per_pass: int = PAIRS_PER_PASS,
) -> Tensor:
    """Return the scores of pairs, (P,): those of the ranking head if the model has one, else the log odds of a match.

    Args:
        model: The model, in eval mode.
        video: (N, T, l, D), from `AllInOne.embed_video`.
        ids: (M, L).
        clips: Video index of each pair, (P,).
        texts: Text index of each pair, (P,).
        orders: Order of the patches of each video's frames, (N, T, patches); None: raster.
        pairs_per_pass: Maximum number of pairs per forward pass.
    """
    order = None if orders is None else orders[clips.to(orders.device)].flatten(0, 1)
    pooled = pooled_pairs(model, video, ids, clips=clips, texts=texts, order=order, pairs_per_pass=pairs_per_pass)
    if model.rank_output is not None:
        scores: Tensor = model.rank_output(pooled)[:, 0]
        return scores
    assert model.itm_score is not None, "the model has neither head `rank` nor `itm`"
    logits: Tensor = model.itm_score(pooled)
    return logits[:, 1] - logits[:, 0]


def answer_logits(model: AllInOne, video: Tensor, ids: Tensor, *, orders: Tensor | None = None) -> Tensor:
    """Return the logits of the answer classes, (B, A).

    Args:
        model: The model, with the head ``answer``.
        video: Normalised frames, (B, T, 3, S, S).
        ids: Questions, (B, L).
        orders: Order of the patches of each frame, (B, T, patches); None: raster.
    """
    assert model.vqa_classifier is not None, "the model has no head `answer`"
    order = None if orders is None else orders.flatten(0, 1).to(video.device)
    features = model.join(model.embed_text(ids), ids, model.embed_video(video), order)
    logits: Tensor = model.vqa_classifier(model.pooler(features))
    return logits
