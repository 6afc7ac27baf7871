"""The plugin contract on a few handwritten digits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from meltr.context import PredictRequest
from meltr.specs import RunSpec
from meltr.testing import BackboneConformance


class TestVision(BackboneConformance):
    backbone = "vision"
    dataset = "digits"
    settings = {
        "train.batch_size": 8,
        "data.train_limit": 40,
        "data.eval_limit": 20,
        "options.model": "resnet20",
    }
    quiet = {"options.flip": False, "options.augment_padding": 0}

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _picture(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        cls.file = tmp_path_factory.mktemp("pictures") / "digit.png"
        pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(cls.file)

    file: Path

    @classmethod
    def requests(cls, spec: RunSpec) -> Sequence[PredictRequest]:
        return [PredictRequest(media=(cls.file,), top=3)]
