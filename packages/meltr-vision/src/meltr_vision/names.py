"""Names of the losses, primary first. Imports nothing.

A further loss is named here and computed in `losses/tasks.py`. Its random numbers are drawn in `losses/draws.py`, and
`model/classifier.py` has its head if it needs one of its own.
"""

from __future__ import annotations

DEFAULT_LOSSES = ("classification", "mixup", "rotation")
"""The losses that every data set supports."""

LABELS = ("coarse", "fine")
"""Losses on the other labels of CIFAR-100, on the same images as the primary loss."""

LOSSES = (*DEFAULT_LOSSES, *LABELS)
