"""VIOLET's own pre-training objective (Fu et al. 2021): MTM + MVM + VTM with a few negatives, attended masking."""

from __future__ import annotations

import torch
from torch import Tensor

from meltr.video.draws import uniform
from meltr.video.losses import cross_entropy
from meltr.video.text.masking import choose, mask_out, normal_tokens
from meltr_violet.losses.masking import (
    Masks,
    attended_positions,
    black_out,
    code_targets,
    draw_cells,
    masks_at,
)
from meltr_violet.losses.tasks import TEMPERATURE, Batch
from meltr_violet.model.scoring import head, pooled_pairs
from meltr_violet.model.violet import Violet

NEGATIVES = 3
"""Wrong texts that a clip is compared with."""


def draw_pretraining_masks(model: Violet, batch: Batch, *, generator: torch.Generator | None) -> Masks:
    """Mask each sample blockwise or, with probability 1/2, where the model of now pays attention.

    Args:
        model: The model; attention is read in its present mode, with its dropout in training.
        batch: The batch.
        generator: Source of randomness; None: torch's global one.
    """
    ids, frames = batch.ids, batch.frames
    size = (*frames.shape[:2], *model.config.grid(*frames.shape[-2:]))
    with torch.no_grad():
        scores = model.attention_received(model.encode_video(frames), model.embed_text(ids), ids)
    attended = masks_at(attended_positions(scores, ids, frames.shape[1], generator=generator), ids, size)
    tokens, targets = mask_out(ids, choose(normal_tokens(ids), generator=generator))
    cells = draw_cells(size, device=ids.device, generator=generator)
    blockwise = uniform((len(ids), 1), ids.device, generator) < 0.5
    return Masks(
        torch.where(blockwise, tokens, attended.ids),
        torch.where(blockwise, targets, attended.text_targets),
        torch.where(blockwise[:, :, None, None], cells, attended.cells),
    )


def draw_negatives(size: int, *, device: torch.device | str = "cpu", generator: torch.Generator | None) -> Tensor:
    """Draw up to three other texts of the batch for each clip, without replacement, (B, min(B - 1, 3)).

    Args:
        size: B.
        device: Where the result lies.
        generator: Source of randomness; None: torch's global one.
    """
    weights = torch.ones(size, size, device=device if generator is None else generator.device).fill_diagonal_(0)
    count = min(size - 1, NEGATIVES)
    if count == 0:
        return torch.zeros(size, 0, dtype=torch.int64, device=device)
    return torch.multinomial(weights, count, generator=generator).to(device)


def pretraining_losses(
    model: Violet, batch: Batch, masks: Masks, negatives: Tensor, *, temperature: float = TEMPERATURE
) -> dict[str, Tensor]:
    """Return ``mtm``, ``mvm`` (if the batch has codes) and ``vtm``, all on masked clips and masked texts.

    Args:
        model: The model with the heads vtm, mtm and mvm.
        batch: The batch.
        masks: What is masked in it.
        negatives: Numbers of the wrong texts of each clip, (B, C), as from `draw_negatives`.
        temperature: Of matching.
    """
    video = model.encode_video(black_out(batch.frames, masks.cells, model.config.cell))
    text = model.embed_text(masks.ids)
    states = model.join(video, text, masks.ids)
    length = video.shape[1]
    losses = {"mtm": cross_entropy(head(model, "mtm", states[:, length:]), masks.text_targets)}
    if batch.codes is not None:
        losses["mvm"] = cross_entropy(head(model, "mvm", states[:, :length]), code_targets(batch.codes, masks.cells))
    scores = matching_scores(model, video, text, masks.ids, own=states[:, length], negatives=negatives)
    first = torch.zeros(len(video), dtype=torch.int64, device=video.device)
    losses["vtm"] = cross_entropy(scores / temperature, first)
    return losses


def matching_scores(
    model: Violet, video: Tensor, text: Tensor, ids: Tensor, *, own: Tensor, negatives: Tensor
) -> Tensor:
    """Return raw scores of each clip with its own text, in column 0, and with its negatives, (B, 1 + C).

    Args:
        model: The model.
        video: Video tokens (B, T n, D).
        text: Text embeddings (B, X, D).
        ids: Their token ids (B, X).
        own: States of [CLS] of the own pairs, (B, D).
        negatives: (B, C).
    """
    clips = torch.arange(len(video), device=negatives.device)[:, None].expand_as(negatives)
    states = pooled_pairs(model, video, text, ids, clips=clips.flatten(), texts=negatives.flatten())
    wrong = head(model, "vtm", states).view(negatives.shape)
    return torch.cat([head(model, "vtm", own), wrong], 1)
