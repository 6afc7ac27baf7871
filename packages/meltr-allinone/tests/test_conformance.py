"""The plugin contract on a search among ten small clips, with all losses."""

from __future__ import annotations

from allinone_clips import SMALL
from meltr.video.testing import VideoConformance


class TestAllInOne(VideoConformance):
    backbone = "allinone"
    task = "retrieval"
    dataset = "msrvtt-7k"
    settings = {"options.size": "tiny", **{f"options.{name}": value for name, value in SMALL.items()}}
