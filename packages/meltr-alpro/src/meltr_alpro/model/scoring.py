"""Scores of answers, and of all texts with all videos: by two vectors, by fusion, or fusion for the best only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from meltr.video.tasks.reranking import Chosen, Matrix, Scores, reranked
from meltr_alpro.model.alpro import Alpro, similarity

Scoring = Literal["dual", "joint", "rerank"]

PAIRS_PER_PASS = 64
"""Largest number of pairs of text and video per fusion pass in evaluation."""


def answer_logits(model: Alpro, video: Tensor, ids: Tensor) -> Tensor:
    """Return the logits of the answer classes, (B, A).

    Args:
        model: The model, with the head ``answer``.
        video: (B, T, 3, S, S), bytes or pixels in [0, 1].
        ids: Questions, (B, L).
    """
    assert model.classifier is not None, "the model has no head `answer`"
    logits: Tensor = model.classifier(model.fuse(model.encode_text(ids), model.encode_video(video), ids)[:, 0])
    return logits


@dataclass(frozen=True)
class Retrieval:
    """Settings for scoring texts with videos.

    Args:
        scoring: ``dual``: cosine divided by the temperature; ``joint``: log odds of a match, from the fusion of each
            pair; ``rerank``: ``joint`` for the best of ``dual``.
        rerank: Number of videos for each text, and of texts for each video, that are re-ranked.
        texts_per_pass: Texts per pass of the text layers.
        pairs_per_pass: Pairs per fusion pass.
    """

    scoring: Scoring = "rerank"
    rerank: int = 50
    texts_per_pass: int = 64
    pairs_per_pass: int = PAIRS_PER_PASS

    @torch.no_grad()
    def scores(self, model: Alpro, ids: Tensor, videos: Iterable[Tensor]) -> Scores:
        """Score all texts with all videos; each is encoded once.

        Args:
            model: The model, in eval mode, with the head ``matching`` unless `scoring` is ``dual``.
            ids: Token ids of the texts, (M, L).
            videos: Batches of clips, (B, T, 3, S, S), on the model's device.
        """
        device = model.temp.device
        tokens, vectors = [], []
        for clips in videos:
            encoded = model.encode_video(clips)
            vectors.append(model.video_vectors(encoded))
            tokens.append(encoded[:, :1].cpu() if self.scoring == "dual" else encoded.cpu())
        states = torch.cat([model.encode_text(part.to(device)).cpu() for part in ids.split(self.texts_per_pass)])
        text = model.text_vectors(states[:, :1].to(device))
        dual = similarity(torch.cat(vectors), text, model.temperature()).T.double().cpu().numpy()
        if self.scoring == "dual":
            return Scores(dual, dual)
        joint = partial(self._joint, model, ids.cpu(), states, torch.cat(tokens))
        if self.scoring == "joint":
            found = joint(np.ones(dual.shape, dtype=bool))
            return Scores(found, found)
        return reranked(dual, joint, self.rerank)

    def _joint(self, model: Alpro, ids: Tensor, states: Tensor, tokens: Tensor, wanted: Chosen) -> Matrix:
        """Return the log odds of a match where `wanted` is True, 0 elsewhere."""
        assert model.itm_head is not None, "the model has no head `matching`"
        texts, clips = (torch.from_numpy(part) for part in np.nonzero(wanted))
        found, device = [torch.zeros(0, dtype=torch.float64)], model.temp.device
        for text, clip in zip(texts.split(self.pairs_per_pass), clips.split(self.pairs_per_pass), strict=True):
            fused = model.fuse(states[text].to(device), tokens[clip].to(device), ids[text].to(device))
            logits: Tensor = model.itm_head(fused[:, 0])
            found.append((logits[:, 1] - logits[:, 0]).double().cpu())
        scores = np.zeros(wanted.shape)
        scores[texts.numpy(), clips.numpy()] = torch.cat(found).numpy()
        return scores
