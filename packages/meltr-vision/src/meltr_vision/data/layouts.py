"""Layouts of the data sets, for the messages about missing files. This module does not import torch."""

from __future__ import annotations

LAYOUTS = {
    "cifar100": "cifar-100-python/\n    train  test  meta",
    "cifar10": "cifar-10-batches-py/\n    data_batch_1 ... data_batch_5  test_batch  batches.meta",
    "image_folder": (
        "train/\n    <class>/*.jpg, *.png, ...\n    <class>/...\n"
        "val/   (optional; otherwise split off from train)\ntest/  (optional)"
    ),
}
"""Data set -> files below ``--data-root``."""
