"""Text-to-video and video-to-text retrieval: R@1, R@5, R@10, median and mean rank from a similarity matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from meltr.metrics.ranking import Ranks, Scores, Ties, checked, ranks

CUTS = (1, 5, 10)
"""K of R@K."""


def retrieval_metrics(
    similarity: npt.ArrayLike,
    video_of_text: Sequence[int] | npt.NDArray[np.integer] | None = None,
    *,
    ties: Ties = "stable",
) -> dict[str, float]:
    """Return the metrics of both directions.

    Text to video: each text retrieves its video. Video to text: each video retrieves its texts, and the best-ranked
    text counts. Videos without a text are only candidates.

    Args:
        similarity: Shape (texts, videos), the higher the better.
        video_of_text: Shape (texts,): the correct video of each text; None: text i belongs to video i.
        ties: How equal scores are ranked, see `meltr.metrics.ranking.Ties`.

    Returns:
        ``r@1``, ``r@5``, ``r@10`` in percent, ``medr``, ``meanr`` (ranks start at 1) for text to video, and the same
        with the prefix ``v2t/`` for video to text.

    Raises:
        MeltrError: If a score is NaN.
        ValueError: If the shapes do not match.
    """
    backward = {f"v2t/{name}": value for name, value in summary(video_to_text(similarity, video_of_text, ties)).items()}
    return summary(text_to_video(similarity, video_of_text, ties)) | backward


def text_to_video(
    similarity: npt.ArrayLike,
    video_of_text: Sequence[int] | npt.NDArray[np.integer] | None = None,
    ties: Ties = "stable",
) -> Ranks:
    """Return the rank of each text's correct video; arguments and errors are those of `retrieval_metrics`."""
    matrix = checked(similarity)
    return ranks(matrix, _owners(matrix, video_of_text), ties=ties)


def video_to_text(
    similarity: npt.ArrayLike,
    video_of_text: Sequence[int] | npt.NDArray[np.integer] | None = None,
    ties: Ties = "stable",
) -> Ranks:
    """Return the rank of the best-ranked correct text of each video that has one; arguments as `retrieval_metrics`.

    The other correct texts of a video do not count as competitors of the best one, also in ties.
    """
    matrix = checked(similarity)
    owners = _owners(matrix, video_of_text)
    found = []
    for video in np.unique(owners):
        right = np.flatnonzero(owners == video)
        best = right[matrix[right, video].argmax()]
        rivals = np.flatnonzero((owners != video) | (np.arange(len(owners)) == best))
        place = int(np.searchsorted(rivals, best))
        found.append(ranks(matrix[None, rivals, video], [place], ties=ties))
    return np.concatenate(found)


def _owners(matrix: Scores, video_of_text: Sequence[int] | npt.NDArray[np.integer] | None) -> npt.NDArray[np.int64]:
    texts, videos = matrix.shape
    if video_of_text is None and texts != videos:
        raise ValueError(f"{texts} texts and {videos} videos: say with video_of_text which belongs to which")
    owners = np.arange(texts) if video_of_text is None else np.asarray(video_of_text, dtype=np.int64)
    if owners.shape != (texts,) or not 0 <= owners.min() <= owners.max() < videos:
        raise ValueError(f"video_of_text must hold, for each of {texts} texts, one of {videos} videos")
    return owners


def summary(found: Ranks) -> dict[str, float]:
    """Return R@K in percent, and the median and mean of ranks of shape (N,) that start at 1."""
    recalls = {f"r@{cut}": 100 * float(np.mean(found <= cut)) for cut in CUTS}
    return recalls | {"medr": float(np.median(found)), "meanr": float(np.mean(found))}


def chance(videos: int, texts_of_video: Sequence[int] | npt.NDArray[np.integer] | None = None) -> dict[str, float]:
    """Return the expected metrics of random scores, under the names of `retrieval_metrics`.

    All orders of the M candidates are equally likely. So the probability that none of the n correct ones is among the
    first K is C(M - n, K) / C(M, K). The medians are those of the distribution of ranks.

    Args:
        videos: Number of videos.
        texts_of_video: Shape (videos,): number of texts of each video; None: one each.
    """
    texts = np.ones(videos, dtype=np.int64) if texts_of_video is None else np.asarray(texts_of_video)
    forward = _chance([1], videos)
    backward = _chance(texts[texts > 0], int(texts.sum()))
    return forward | {f"v2t/{name}": value for name, value in backward.items()}


def _chance(right: Sequence[int] | npt.NDArray[np.integer], candidates: int) -> dict[str, float]:
    """Return the metrics of random orders; `right` is the number of correct candidates of each query."""
    numbers, weights = np.unique(right, return_counts=True)
    taken = np.arange(candidates)
    still_none = np.clip(1 - numbers[:, None] / (candidates - taken), 0, 1).cumprod(axis=1)
    beyond = np.average(still_none, axis=0, weights=weights)  # P(rank > 1), P(rank > 2), ...
    recalls = {f"r@{cut}": 100 * float(1 - beyond[min(cut, candidates) - 1]) for cut in CUTS}
    low, high = int((beyond > 0.5 + 1e-9).sum()), int((beyond > 0.5 - 1e-9).sum())
    return recalls | {"medr": 1 + (low + high) / 2, "meanr": 1 + float(beyond.sum())}
