"""Score all texts with all videos: with the dual encoder, with joint passes, or by re-ranking.

Re-ranking runs joint passes for the best candidates of the dual encoder. For M texts and N videos, the dual encoder
needs N + M passes, joint scoring N M passes, and re-ranking a few joint passes for each text and each video.
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
    """Settings for scoring texts with videos.

    Args:
        scoring: ``dual``, ``joint`` or ``rerank``.
        rerank: Number of videos for each text, and of texts for each video, that are re-ranked by joint passes.
        order_seed: Seed of the random order of patches in joint passes; None: raster order.
        batch_size: Texts per pass.
        pairs_per_pass: Pairs per joint pass.
    """

    scoring: Scoring = "dual"
    rerank: int = 50
    order_seed: int | None = None
    batch_size: int = 64
    pairs_per_pass: int = PAIRS_PER_PASS

    @torch.no_grad()
    def scores(self, model: AllInOne, ids: Tensor, videos: Iterable[Tensor]) -> Scores:
        """Score all texts with all videos. Each video is embedded once.

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
        """Return joint scores where `wanted` is True, 0 elsewhere."""
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
