"""The plugin contract for each family, on about ten small clips."""

from __future__ import annotations

from meltr.video.testing import VideoConformance

SMALL = {"options.frames": 2, "options.image_size": 16, "options.text_length": 12}


class TestClip(VideoConformance):
    backbone = "clip"
    task = "retrieval"
    dataset = "manifest"
    settings = {**SMALL, "options.family": "clip"}


class TestSiglip2(VideoConformance):
    backbone = "clip"
    task = "action"
    dataset = "manifest"
    settings = {**SMALL, "options.family": "siglip2"}


class TestVideoMae(VideoConformance):
    backbone = "clip"
    task = "action"
    dataset = "manifest"
    settings = {**SMALL, "options.family": "videomae", "options.mask_ratio": 0.5}
