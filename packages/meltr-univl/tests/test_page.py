"""docs/univl.md and the README say what the code does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backbone_page import DIFFERENCES, BackbonePage
from meltr_univl.options import UnivlOptions
from meltr_univl.released import CAPTIONING_RELEASED, MSRVTT_RELEASED, RELEASED


class TestPage(BackbonePage):
    backbone = "univl"
    settings = {DIFFERENCES: -1, "Settings": 0, "Weights": 0, "The data, two ways": 0}
    values = ("mil_nce", "margin")
    switches = (
        *RELEASED,
        *MSRVTT_RELEASED.settings,
        *CAPTIONING_RELEASED.settings,
        "bilevel.outer_batch",
        "combiner_options.start",
    )
    losses = ("align", "joint", "cmlm", "cmfm", "m_align", "decoder", "m_decoder")

    def check_names(self, names: Mapping[str, Any]) -> None:
        assert names["captions"].ids.shape == (3, 5, 8)

    def test_defaults_that_the_page_names(self, page: str) -> None:
        options = UnivlOptions()
        assert f"{options.text_length}, as the text, {options.video_length}" in page
        assert f"{options.eval_batch_size}, {options.beams}" in page
