"""docs/violet.md and the README say what the code does."""

from __future__ import annotations

from backbone_page import DIFFERENCES, BackbonePage
from meltr_violet.data.prepared import LAYOUTS
from meltr_violet.options import VioletOptions
from meltr_violet.presets import RELEASED


class TestPage(BackbonePage):
    backbone = "violet"
    settings = {DIFFERENCES: -1, "Settings": 0, "Weights": 0}
    values = ("clean", "masked", "all", "own", "prompt", "released", "plain", "vtm", "none")
    switches = (*RELEASED, "bilevel.outer_batch", "combiner_options.start")
    losses = ("answer", "vtm", "mtm", "mvm")

    def test_files_and_defaults_that_the_page_names(self, page: str) -> None:
        for layout in LAYOUTS:
            assert layout.dataset in page
        for each in (
            "img_msvd.pkl",
            "msvd_vq.pkl",
            "txt_tgif-action.json",
            "train_9k.json",
            "txt_msrvtt-retrieval.json",
        ):
            assert each in page
            assert any(each in file.names for layout in LAYOUTS for file in layout.files)
        options = VioletOptions()
        assert f"{options.frames}, {options.image_size}, {options.text_length}" in page
        assert options.eval_batch_size == 16
        assert options.memory_mb == 2048
