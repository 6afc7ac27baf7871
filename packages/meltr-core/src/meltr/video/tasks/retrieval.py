"""Text-to-video and video-to-text retrieval: R@1, R@5, R@10, median and mean rank of a matrix of similarities."""

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

    Text to video: every text looks for its video. Video to text: every video looks for any of its texts, and the best
    placed one counts; videos without a text are candidates only.

    Args:
        similarity: Shape (texts, videos), the higher the better.
        video_of_text: Shape (texts,): the right video of each text; None: text i belongs to video i.
        ties: What candidates with the same score do, see `meltr.metrics.ranking.Ties`.

    Returns:
        ``r@1``, ``r@5``, ``r@10`` in percent, ``medr``, ``meanr`` (ranks start with 1) for text to video, and the same
        with ``v2t/`` before them for video to text.

    Raises:
        MeltrError: If a score is NaN.
        ValueError: If the shapes do not fit.
    """
    backward = {f"v2t/{name}": value for name, value in summary(video_to_text(similarity, video_of_text, ties)).items()}
    return summary(text_to_video(similarity, video_of_text, ties)) | backward


def text_to_video(
    similarity: npt.ArrayLike,
    video_of_text: Sequence[int] | npt.NDArray[np.integer] | None = None,
    ties: Ties = "stable",
) -> Ranks:
    """Return the rank of the right video of every text; arguments and errors as for `retrieval_metrics`."""
    matrix = checked(similarity)
    return ranks(matrix, _owners(matrix, video_of_text), ties=ties)


def video_to_text(
    similarity: npt.ArrayLike,
    video_of_text: Sequence[int] | npt.NDArray[np.integer] | None = None,
    ties: Ties = "stable",
) -> Ranks:
    """Return the rank of the best placed right text of every video that has one; arguments as `retrieval_metrics`.

    The other right texts of a video are not in the way of the best one, and ties among them do not count.
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
    """Return R@K in percent, median and mean of ranks that start with 1, shape (N,)."""
    recalls = {f"r@{cut}": 100 * float(np.mean(found <= cut)) for cut in CUTS}
    return recalls | {"medr": float(np.median(found)), "meanr": float(np.mean(found))}


def chance(videos: int, texts_of_video: Sequence[int] | npt.NDArray[np.integer] | None = None) -> dict[str, float]:
    """Return what scores drawn at random give on the average, under the names of `retrieval_metrics`.

    All orders of the M candidates are equally likely, so that none of the n right ones is among the first K with the
    probability C(M - n, K) / C(M, K). The medians are those of the distribution of ranks.

    Args:
        videos: How many there are.
        texts_of_video: Shape (videos,): how many texts each has; None: one.
    """
    texts = np.ones(videos, dtype=np.int64) if texts_of_video is None else np.asarray(texts_of_video)
    forward = _chance([1], videos)
    backward = _chance(texts[texts > 0], int(texts.sum()))
    return forward | {f"v2t/{name}": value for name, value in backward.items()}


def _chance(right: Sequence[int] | npt.NDArray[np.integer], candidates: int) -> dict[str, float]:
    """Return the metrics of random orders; `right`: how many right candidates each query has."""
    numbers, weights = np.unique(right, return_counts=True)
    taken = np.arange(candidates)
    still_none = np.clip(1 - numbers[:, None] / (candidates - taken), 0, 1).cumprod(axis=1)
    beyond = np.average(still_none, axis=0, weights=weights)  # P(rank > 1), P(rank > 2), ...
    recalls = {f"r@{cut}": 100 * float(1 - beyond[min(cut, candidates) - 1]) for cut in CUTS}
    low, high = int((beyond > 0.5 + 1e-9).sum()), int((beyond > 0.5 - 1e-9).sum())
    return recalls | {"medr": 1 + (low + high) / 2, "meanr": 1 + float(beyond.sum())}
