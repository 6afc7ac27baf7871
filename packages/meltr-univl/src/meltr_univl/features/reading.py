"""Features of videos: their type, the record of how they were made, and the part of a video that a model sees.

This module does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from meltr.errors import UserError
from meltr.files import write_json
from meltr.limits import UnreadableError, file_text, from_json

Features = npt.NDArray[np.float32]
"""One vector for each clip of a video, (F, D); F is 0 for a video without frames."""

RECORD = "features.json"
"""File in a folder of features that says how they were made."""

FORMAT = 1
"""Version of the format of that file."""

PUBLISHED = "s3d-howto100m"
"""The extractor of UniVL's published features: S3D trained on HowTo100M (Miech et al., CVPR 2020), dimension 1,024."""

MAKE = "meltr data features"
"""The command that makes features."""

Pick = Literal["first", "even"]
"""Vectors of a long clip that are kept: the first ones, as in UniVL's code, or evenly spaced ones."""


@dataclass(frozen=True)
class FeatureRecord:
    """How features were made.

    Args:
        width: D, dimension of a vector.
        extractor: Name of the extractor; None: unknown.
        rate: Vectors per second; None: unknown.
        weights: Digest of the extractor's weights; None: it has none, or they are unknown.
        failed: Video -> why it has no features.
    """

    width: int
    extractor: str | None = None
    rate: float | None = None
    weights: str | None = None
    failed: Mapping[str, str] = field(default_factory=dict, compare=False)

    def text(self) -> str:
        """Return how the features were made, for messages."""
        rate = "" if self.rate is None else f", {self.rate:g} vectors per second"
        weights = "" if self.weights is None else f", weights {self.weights[:12]}"
        return f"{self.extractor or 'unknown extractor'}, dimension {self.width:,}{rate}{weights}"


@runtime_checkable
class FeatureReader(Protocol):
    """Features by the key of a video. An implementation must support pickling, because DataLoader workers hold one."""

    record: FeatureRecord

    def features(self, key: str) -> Features:
        """Return the features of `key`, (F, D).

        Raises:
            KeyError: If `key` is unknown.
            meltr.UserError: If the features are damaged, have another dimension, or are not finite.
        """
        ...


class FeatureSource(FeatureReader, Protocol):
    """The features of a data set, in a file or folder."""

    path: Path

    def __contains__(self, key: object) -> bool:
        """Return True if there are features for `key`."""
        ...


def read_record(folder: Path) -> FeatureRecord | None:
    """Return how the features of a folder were made; None if the folder does not say.

    Raises:
        UserError: If the file is malformed, or of another version of meltr.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        content = from_json(file_text(path), path)
        if content.pop("format") != FORMAT:
            raise ValueError("its format is not the one that this meltr reads")
        record = FeatureRecord(**content)
        if not isinstance(record.width, int) or record.width < 1:
            raise ValueError(f"width is {record.width!r}")
        if record.rate is not None and not (math.isfinite(record.rate) and record.rate > 0):
            raise ValueError(f"rate is {record.rate!r}")
    except UnreadableError as error:
        raise UserError(
            f"{path} is damaged: {error.problem}", f"Delete the folder and make it again: {MAKE}."
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged: {type(error).__name__}: {error}.", f"Delete the folder and make it again: {MAKE}."
        ) from error
    return record


def write_record(folder: Path, record: FeatureRecord) -> None:
    """Write how the features of a folder were made."""
    write_json(folder / RECORD, {"format": FORMAT, **asdict(record)})


def checked(array: Any, where: str, width: int) -> Features:
    """Return an array as features, after checks.

    Args:
        array: Content of a file.
        where: The file and the key in it, for messages.
        width: D, dimension of a vector.

    Raises:
        UserError: If the array does not have the shape (F, `width`), or is not numeric or not finite.
    """
    array = np.asarray(array)
    if array.dtype.kind not in "fiu":
        raise UserError(
            f"{where} holds {array.dtype} instead of numbers.", "Features are floats of shape (frames, width)."
        )
    if array.size == 0 and array.ndim in (1, 2):
        return np.zeros((0, width), dtype=np.float32)
    if array.ndim != 2:
        raise UserError(
            f"{where} holds an array of shape {array.shape}; features have shape (frames, {width}).",
            "Store one vector per row; a single vector is an array with one row.",
        )
    if array.shape[1] != width:
        raise UserError(
            f"{where} holds features of dimension {array.shape[1]:,}; the others have {width:,}.",
            f"All features must come from one extractor. Make them again: {MAKE}.",
        )
    features: Features = np.ascontiguousarray(array, dtype=np.float32)
    wrong = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(wrong):
        raise UserError(
            f"{where} holds NaN or infinite numbers in {len(wrong):,} of {len(features):,} frames, "
            f"first in frame {wrong[0]}.",
            f"Make the features of this video again: {MAKE}.",
        )
    return features


def require(
    source: FeatureSource, *, width: int | None = None, extractor: str | None = None, weights: str | None = None
) -> None:
    """Check that features fit a model.

    Args:
        source: The features.
        width: D that the model takes; None: any.
        extractor: Extractor that the model was trained with; None: any. Features that do not name theirs are accepted.
        weights: Digest of the extractor's weights; None: any. Features that do not name theirs are accepted.

    Raises:
        UserError: If the features have another dimension, extractor, or weights.
    """
    found = source.record
    if width is not None and found.width != width:
        raise UserError(
            f"{source.path} holds features of dimension {found.width:,} ({found.text()}); the model takes {width:,}.",
            f"Make features for it with `{MAKE}`, or train a model for these features, without pretrained weights: "
            f"--set video_dim={found.width}",
        )
    if extractor is not None and found.extractor not in (None, extractor):
        raise UserError(
            f"{source.path} holds features of {found.extractor}; the model was trained with those of {extractor}.",
            f"Make them with `{MAKE} --extractor {extractor}`, or give existing ones with --set features=PATH.",
        )
    if weights is not None and found.weights not in (None, weights):
        raise UserError(
            f"{source.path} holds features of {found.text()}; the model was trained with others, of weights "
            f"{weights[:12]}.",
            f"Make them with `{MAKE}` and the same file of weights.",
        )


def window(
    features: Features, *, span: tuple[float, float] | None, rate: float, length: int, pick: Pick = "first"
) -> Features:
    """Return the vectors of a clip that a model sees, (at most `length`, D).

    UniVL selects the indices floor(start r) ... floor(end r), inclusive, and keeps the first F, so long clips lose
    their tail. ``even`` instead keeps floor((i + 1/2) n / F) of the n selected ones, for i = 0 ... F - 1.

    Args:
        features: Features of the whole video, (n, D).
        span: Start and end in seconds; None: the whole video.
        rate: r, vectors per second.
        length: F, maximum number of vectors.
        pick: Vectors to keep if there are more than F.
    """
    if span is not None:
        features = features[math.floor(span[0] * rate) : math.floor(span[1] * rate) + 1]
    if len(features) <= length:
        return features
    if pick == "first":
        return features[:length]
    return features[(2 * np.arange(length) + 1) * len(features) // (2 * length)]
