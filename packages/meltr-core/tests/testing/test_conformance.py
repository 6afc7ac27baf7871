"""The conformance classes: a whole backbone passes, and each rule that is broken fails the test that is about it."""

from __future__ import annotations

from meltr.testing import BackboneConformance
from places import TOY


class TestToy(BackboneConformance):
    backbone = "toy"
    plugins = (TOY,)
    settings = {"train.batch_size": 16, "data.eval_limit": 32}
