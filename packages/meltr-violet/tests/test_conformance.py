"""The plugin contract on questions about ten small clips."""

from __future__ import annotations

from meltr.video.testing import VideoConformance


class TestViolet(VideoConformance):
    backbone = "violet"
    task = "qa"
    dataset = "msvd"
    settings = {
        "options.size": "tiny",
        "options.frames": 2,
        "options.image_size": 64,
        "options.text_length": 16,
    }
    quiet = {"options.answer_dropout": 0}
