"""Old name of `meltr_univl.features.files`."""

from __future__ import annotations

from meltr.moved import leading_to

__getattr__ = leading_to("meltr_univl.features.files", old=__name__)
