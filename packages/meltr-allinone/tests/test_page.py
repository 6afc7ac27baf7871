"""docs/allinone.md and the README say what the code does."""

from __future__ import annotations

from backbone_page import DIFFERENCES, BackbonePage
from meltr_allinone.options import AllInOneOptions
from meltr_allinone.presets import MSRVTT_RELEASED, RELEASED


class TestPage(BackbonePage):
    backbone = "allinone"
    settings = {DIFFERENCES: -1, "Settings": 0, "Frames": 0}
    switches = (*RELEASED, *MSRVTT_RELEASED.settings, "bilevel.outer_batch", "combiner_options.start")
    losses = ("vtm", "mlm", "wpa", "contrastive")

    def test_defaults_that_the_page_names(self, page: str) -> None:
        options = AllInOneOptions()
        assert f"{options.frames}, {options.image_size}, {options.text_length}" in page
        assert f"`rerank` = {options.rerank}" in page
