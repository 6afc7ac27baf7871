"""Scores of all texts with all videos: by the dual encoder, by joint passes, or joint passes for the best of the dual.

The dual encoder needs N + M passes, joint scoring N M of them, re-ranking N times the few that are ordered anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from meltr.video.tasks.reranking import Chosen, Matrix, Scores, reranked
from meltr_allinone.losses.tasks import similarity
from meltr_allinone.model.all_in_one import AllInOne
from meltr_allinone.model.scoring import PAIRS_PER_PASS, joint_scores, seeded_orders

Scoring = Literal["dual", "joint", "rerank"]


@dataclass(frozen=True)
class Retrieval:
    """How texts and videos are scored.

    Args:
        scoring: ``dual``, ``joint`` or ``rerank``.
        rerank: How many videos of each text, and texts of each video, a joint pass orders anew.
        order_seed: Where the random order of patches in joint passes comes from; None: raster order.
        batch_size: Texts a pass.
        pairs_per_pass: Pairs a joint pass.
    """

    scoring: Scoring = "dual"
    rerank: int = 50
    order_seed: int | None = None
    batch_size: int = 64
    pairs_per_pass: int = PAIRS_PER_PASS

    @torch.no_grad()
    def scores(self, model: AllInOne, ids: Tensor, videos: Iterable[Tensor]) -> Scores:
        """Score all texts with all videos; each video is embedded once.

        Args:
            model: The model, in eval mode, with the heads that the scoring needs.
            ids: Token ids of the texts, (M, L).
            videos: Batches of normalised videos, (B, T, 3, S, S), on the model's device.
        """
        vectors, tokens = [], []
        for video in videos:
            if self.scoring != "joint":
                vectors.append(model.video_vectors(video))
            if self.scoring != "dual":
                tokens.append(model.embed_video(video).cpu())
        if self.scoring == "joint":
            found = self._joint(model, ids, torch.cat(tokens), np.ones((len(ids), sum(map(len, tokens))), dtype=bool))
            return Scores(found, found)
        device = next(model.parameters()).device
        texts = [model.text_vectors(part.to(device)) for part in ids.split(self.batch_size)]
        dual = similarity(torch.cat(texts), torch.cat(vectors)).double().cpu().numpy()
        if self.scoring == "dual":
            return Scores(dual, dual)
        return reranked(dual, partial(self._joint, model, ids, torch.cat(tokens)), self.rerank)

    def _joint(self, model: AllInOne, ids: Tensor, tokens: Tensor, wanted: Chosen) -> Matrix:
        """Return joint scores where they are wanted, 0 elsewhere."""
        clips, texts = (torch.from_numpy(part) for part in np.nonzero(wanted.T))
        found = np.zeros(wanted.shape)
        found[texts.numpy(), clips.numpy()] = (
            joint_scores(
                model,
                tokens,
                ids,
                clips=clips,
                texts=texts,
                orders=seeded_orders(model, len(tokens), tokens.shape[1], seed=self.order_seed),
                pairs_per_pass=self.pairs_per_pass,
            )
            .double()
            .cpu()
            .numpy()
        )
        return found
