"""Score all texts with all videos: with the dual encoder, with joint passes, or by re-ranking.

Re-ranking runs joint passes for the best candidates of the dual encoder. For M texts and N videos, the dual encoder
needs N + M passes, joint scoring N M passes, and re-ranking a few joint passes for each text and each video.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from meltr_allinone.losses.tasks import similarity
from meltr_allinone.model.all_in_one import AllInOne
from meltr_allinone.model.scoring import PAIRS_PER_PASS, joint_scores, seeded_orders

Scoring = Literal["dual", "joint", "rerank"]
Matrix = npt.NDArray[np.float64]


class Scores(NamedTuple):
    """Scores of texts with videos. Higher is better.

    Args:
        of_texts: Scores for finding the video of a text, (texts, videos).
        of_videos: Scores for finding the text of a video, (texts, videos). They differ only after re-ranking.
    """

    of_texts: Matrix
    of_videos: Matrix


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
        ahead = (best_of(dual, self.rerank), best_of(dual.T, self.rerank).T)
        joint = self._joint(model, ids, torch.cat(tokens), ahead[0] | ahead[1])
        return Scores(*(put_ahead(dual, joint, first) for first in ahead))

    def _joint(self, model: AllInOne, ids: Tensor, tokens: Tensor, wanted: npt.NDArray[np.bool_]) -> Matrix:
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


def best_of(scores: Matrix, count: int) -> npt.NDArray[np.bool_]:
    """Return a mask of the `count` best scores of each row. Ties go to the first."""
    chosen = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(chosen, np.argsort(-scores, axis=1, kind="stable")[:, :count], True, axis=1)
    return chosen


def put_ahead(scores: Matrix, better: Matrix, chosen: npt.NDArray[np.bool_]) -> Matrix:
    """Return `scores`, replaced where `chosen` by `better`, shifted above all other scores."""
    lift = scores.max() - better[chosen].min() + 1
    return np.where(chosen, better + lift, scores)
