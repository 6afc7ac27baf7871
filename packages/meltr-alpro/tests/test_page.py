"""docs/alpro.md and the README say what the code does."""

from __future__ import annotations

from backbone_page import DIFFERENCES, BackbonePage
from meltr_alpro.options import AlproOptions
from meltr_alpro.presets import RELEASED


class TestPage(BackbonePage):
    backbone = "alpro"
    settings = {DIFFERENCES: -1, "Settings": 0, "Frames": 0}
    least = 25
    switches = tuple(RELEASED)
    losses = ("answer", "vtc", "vtm", "mlm", "pem")

    def test_defaults_that_the_page_names(self, page: str) -> None:
        options = AlproOptions()
        assert f"{options.frames}, {options.image_size}, {options.text_length}" in page
        assert f"`rerank` = {options.rerank}" in page
