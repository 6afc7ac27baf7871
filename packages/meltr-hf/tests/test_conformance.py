"""The plugin contract, on small models of every kind that the tests make and save."""

from __future__ import annotations

from meltr import PredictRequest
from meltr.testing import BackboneConformance

SMALL = {
    "sample": True,
    "train.batch_size": 8,
    "data.train_limit": 64,
    "data.eval_limit": 16,
    "options.text_length": 12,
    "options.target_length": 6,
}


class TestClassification(BackboneConformance):
    """The tiny encoder with all its losses, and the column of the sample."""

    backbone = "hf"
    task = "text-classification"
    settings = SMALL

    @classmethod
    def requests(cls, spec):
        return [PredictRequest(text=("the film was not great", "a new word"), top=2)]


class TestWriting(BackboneConformance):
    """The tiny encoder-decoder."""

    backbone = "hf"
    task = "text-to-text"
    settings = SMALL

    @classmethod
    def requests(cls, spec):
        return [PredictRequest(text=("the film was not great", "a new word"), top=2)]
