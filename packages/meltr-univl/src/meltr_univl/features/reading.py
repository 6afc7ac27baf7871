"""Features of videos: what they are, how they were made, and the part of a video that a model sees. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from meltr.errors import UserError
from meltr.files import write_json

Features = npt.NDArray[np.float32]
"""One vector for each moment of a video, (F, D); F is 0 for a clip without frames."""

RECORD = "features.json"
"""In a folder of features: how they were made."""

FORMAT = 1
"""Version of that file."""

PUBLISHED = "s3d-howto100m"
"""The extractor of UniVL's published features: S3D trained on HowTo100M (Miech et al., CVPR 2020), 1,024 numbers."""

MAKE = "meltr data features"
"""The command that makes features."""

Pick = Literal["first", "even"]
"""Which vectors of a long clip are kept: the first, as in UniVL's code, or evenly spread ones."""


@dataclass(frozen=True)
class FeatureRecord:
    """How features were made.

    Args:
        width: D, numbers of a vector.
        extractor: Name of the network; None: unknown.
        rate: Vectors a second; None: unknown.
        weights: Digest of its weights; None: it has none, or they are unknown.
        failed: Video -> why it has no features.
    """

    width: int
    extractor: str | None = None
    rate: float | None = None
    weights: str | None = None
    failed: Mapping[str, str] = field(default_factory=dict, compare=False)

    def text(self) -> str:
        """Return how they were made as a user reads it."""
        rate = "" if self.rate is None else f", {self.rate:g} vectors a second"
        weights = "" if self.weights is None else f", weights {self.weights[:12]}"
        return f"{self.extractor or 'unknown extractor'}, {self.width:,} numbers{rate}{weights}"


@runtime_checkable
class FeatureReader(Protocol):
    """Features by the key of a video. Implementations can be pickled, so that DataLoader workers may hold one."""

    record: FeatureRecord

    def features(self, key: str) -> Features:
        """Return the features of `key`, (F, D).

        Raises:
            KeyError: If `key` is unknown.
            meltr.UserError: If they are damaged, of another width, or not finite.
        """
        ...


class FeatureSource(FeatureReader, Protocol):
    """The features of a data set, in a file or folder."""

    path: Path

    def __contains__(self, key: object) -> bool:
        """Tell whether `key` has features here."""
        ...


def read_record(folder: Path) -> FeatureRecord | None:
    """Return how the features of a folder were made; None if it does not say.

    Raises:
        UserError: If the file is malformed, or of another version of meltr.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT:
            raise ValueError("another format than this meltr writes")
        record = FeatureRecord(**content)
        if not isinstance(record.width, int) or record.width < 1:
            raise ValueError(f"width is {record.width!r}")
        if record.rate is not None and not (math.isfinite(record.rate) and record.rate > 0):
            raise ValueError(f"rate is {record.rate!r}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged: {type(error).__name__}: {error}.", f"Delete the folder and make it again: {MAKE}."
        ) from error
    return record


def write_record(folder: Path, record: FeatureRecord) -> None:
    """Write how the features of a folder are made."""
    write_json(folder / RECORD, {"format": FORMAT, **asdict(record)})


def checked(array: Any, where: str, width: int) -> Features:
    """Return an array as features.

    Args:
        array: What a file holds.
        where: The file, and the key in it.
        width: D.

    Raises:
        UserError: If it is not (F, `width`), not numbers, or not finite.
    """
    array = np.asarray(array)
    if array.dtype.kind not in "fiu":
        raise UserError(f"{where} holds {array.dtype} instead of numbers.", "Features are floats, (frames, width).")
    if array.size == 0 and array.ndim in (1, 2):
        return np.zeros((0, width), dtype=np.float32)
    if array.ndim != 2:
        raise UserError(
            f"{where} holds an array of shape {array.shape}; features are (frames, {width}).",
            "One vector a row; a single vector is an array of one row.",
        )
    if array.shape[1] != width:
        raise UserError(
            f"{where} holds features of {array.shape[1]:,} numbers; the others have {width:,}.",
            f"All must come from one extractor. Make them again: {MAKE}.",
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
    """Check that features are of the right kind.

    Args:
        source: The features.
        width: D that the model takes; None: any.
        extractor: The extractor that it was trained with; None: any. Features that do not say theirs are taken.
        weights: Digest of the extractor's weights; the same holds.

    Raises:
        UserError: If they are of another width or extractor.
    """
    found = source.record
    if width is not None and found.width != width:
        raise UserError(
            f"{source.path} holds features of {found.width:,} numbers ({found.text()}); the model takes {width:,}.",
            f"Make features for it with `{MAKE}`, or start a model for these: --set video_dim={found.width} without "
            "pretrained weights.",
        )
    if extractor is not None and found.extractor not in (None, extractor):
        raise UserError(
            f"{source.path} holds features of {found.extractor}; the model was trained with those of {extractor}.",
            f"Make them with `{MAKE} --extractor {extractor}`, or give the others with --set features=PATH.",
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

    UniVL takes floor(start r) ... floor(end r), both included, and of these the first F: long clips lose their tail.
    ``even`` takes floor((i + 1/2) n / F) of n instead, for i = 0 ... F - 1.

    Args:
        features: Those of the whole video, (n, D).
        span: Start and end in seconds; None: all of it.
        rate: r, vectors a second.
        length: F.
        pick: What is kept of more than F.
    """
    if span is not None:
        features = features[math.floor(span[0] * rate) : math.floor(span[1] * rate) + 1]
    if len(features) <= length:
        return features
    if pick == "first":
        return features[:length]
    return features[(2 * np.arange(length) + 1) * len(features) // (2 * length)]
