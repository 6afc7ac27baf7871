"""Old name of `meltr.video.frames.media`."""

from __future__ import annotations

from meltr.moved import leading_to

__getattr__ = leading_to("meltr.video.frames.media", old=__name__)
