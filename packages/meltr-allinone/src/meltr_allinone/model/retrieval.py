"""Scores of all texts with all videos: by the dual encoder, by joint passes, or joint passes for the best of the dual.

The dual encoder needs N + M passes, joint scoring N M of them, re-ranking N times the few that are ordered anew.
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
    """How well texts and videos fit, the higher the better.

    Args:
        of_texts: To find the video of a text, (texts, videos).
        of_videos: To find the text of a video, (texts, videos); another matrix only if the best were ordered anew.
    """

    of_texts: Matrix
    of_videos: Matrix


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
        ahead = (best_of(dual, self.rerank), best_of(dual.T, self.rerank).T)
        joint = self._joint(model, ids, torch.cat(tokens), ahead[0] | ahead[1])
        return Scores(*(put_ahead(dual, joint, first) for first in ahead))

    def _joint(self, model: AllInOne, ids: Tensor, tokens: Tensor, wanted: npt.NDArray[np.bool_]) -> Matrix:
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


def best_of(scores: Matrix, count: int) -> npt.NDArray[np.bool_]:
    """Return which are among the `count` best of their row; of equals, the first."""
    chosen = np.zeros(scores.shape, dtype=bool)
    np.put_along_axis(chosen, np.argsort(-scores, axis=1, kind="stable")[:, :count], True, axis=1)
    return chosen


def put_ahead(scores: Matrix, better: Matrix, chosen: npt.NDArray[np.bool_]) -> Matrix:
    """Return `scores`, but `better`, moved above all of them, where `chosen`."""
    lift = scores.max() - better[chosen].min() + 1
    return np.where(chosen, better + lift, scores)
