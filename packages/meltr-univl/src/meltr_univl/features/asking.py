"""Features of files of the user: computed by the run's extractor, or read from ``.npy`` files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from meltr.errors import UserError
from meltr.limits import UnreadableError, npy_array
from meltr_univl.features.extraction import extract
from meltr_univl.features.extractors import Extractor, open_extractor
from meltr_univl.features.reading import FeatureRecord, Features, checked


class AskedFeatures:
    """A `meltr_univl.features.reading.FeatureReader` whose keys are paths.

    Args:
        meta: Facts about the data that the run was trained on: ``features`` and ``video_dim``.
        weights: Weights of the extractor; None: found by the extractor itself.
        device: Device of the extractor.
    """

    def __init__(self, meta: Mapping[str, Any], weights: Path | None, device: torch.device) -> None:
        self.record = FeatureRecord(meta["video_dim"])
        self._trained, self._weights, self._device = meta["features"], weights, device
        self._extractor: Extractor | None = None

    def features(self, key: str) -> Features:
        """Return the features of a file, (N, D).

        Raises:
            UserError: If the file cannot be read, or the features cannot be computed.
        """
        file = Path(key)
        if file.suffix != ".npy":
            self._extractor = self._extractor or self._opened()
            return extract(file, self._extractor)
        try:
            array = npy_array(file)
        except UnreadableError as error:
            hint = "It must be an array of shape (frames, width), saved with numpy.save."
            raise UserError(f"{file} {error.problem}", hint) from error
        return checked(array, str(file), self.record.width)

    def _opened(self) -> Extractor:
        """Return the extractor of the run's features, with the same weights."""
        name, trained = self._trained["extractor"], self._trained["weights"]
        if name is None:
            raise UserError(
                "This run was trained on features that do not name their extractor, so a video has none.",
                "Compute them in the same way, and use the file: meltr predict RUN --video FILE.npy",
            )
        extractor = open_extractor(name, self._weights, device=self._device)
        if extractor.weights != trained and trained is not None:
            raise UserError(
                f"This run was trained on features of {name} with weights {trained[:12]}, but the weights found are "
                f"{(extractor.weights or 'none')[:12]}.",
                "Train with --set extractor_weights=FILE, so that the run can find them.",
            )
        return extractor
