"""The plugin contract on questions about ten small clips, with all five losses."""

from __future__ import annotations

from meltr.video.testing import VideoConformance


class TestAlpro(VideoConformance):
    backbone = "alpro"
    task = "qa"
    dataset = "msvd"
    settings = {
        "options.size": "tiny",
        "options.frames": 2,
        "options.image_size": 32,
        "options.text_length": 12,
    }
