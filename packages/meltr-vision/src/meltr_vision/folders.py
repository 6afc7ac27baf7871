"""Old name of `meltr_vision.data.folders`."""

from __future__ import annotations

from meltr.moved import leading_to

__getattr__ = leading_to("meltr_vision.data.folders", old=__name__)
