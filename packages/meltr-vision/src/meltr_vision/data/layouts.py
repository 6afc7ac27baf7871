"""Layouts of the data sets, and the hint for missing files. This module does not import torch."""

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


def how_to_get(dataset: str, *, fetchable: bool) -> str:
    """Return the hint for missing files: the layout, and the command that gets them."""
    layout = LAYOUTS[dataset].replace("\n", "\n    ")
    fetch = "\nOr let meltr download the official files: --data-root DIR --set download=true" if fetchable else ""
    return f"Point --data-root DIR to a folder DIR with\n    {layout}{fetch}"
