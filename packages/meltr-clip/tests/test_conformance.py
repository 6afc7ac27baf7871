"""The plugin contract for each family, on about ten small clips."""

from __future__ import annotations

from meltr.video.testing import VideoConformance

THEIRS = "the model of transformers itself reads numbers of the batch"
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
    expected_failures = {"test_the_losses_are_ready_for_a_gpu": THEIRS}


class TestVideoMae(VideoConformance):
    backbone = "clip"
    task = "action"
    dataset = "manifest"
    settings = {**SMALL, "options.family": "videomae", "options.mask_ratio": 0.5}
    expected_failures = {"test_the_losses_are_ready_for_a_gpu": THEIRS}
