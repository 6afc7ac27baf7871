"""Read the data set of a run: official files, image folders, digits, or a synthetic sample.

A further data set is registered in `plugin.py`. Its reader returns `Splits`, its files stand in `data/layouts.py`, and
`data/transforms.py` says how it is normalised.
"""

from __future__ import annotations

import sys

from meltr.context import RunContext
from meltr.errors import UserError
from meltr_vision.data.cifar import CIFARS, read_cifar
from meltr_vision.data.digits import read_digits
from meltr_vision.data.folders import read_image_folder
from meltr_vision.data.images import Splits
from meltr_vision.data.miniature import miniature
from meltr_vision.options import VisionOptions

FOLDER_SIZE = 224
"""Side in pixels of folder images if ``options.image_size`` is not set."""


def read_data_set(context: RunContext) -> Splits:
    """Return the images of a run's data set, or of its synthetic sample.

    Args:
        context: The run; it is told which images were skipped.

    Raises:
        UserError: If the backbone cannot read the data set, it has no such labels, or files are missing or broken.
    """
    spec = context.spec
    options: VisionOptions = context.options
    if spec.dataset == "digits":
        return read_digits()
    if spec.dataset in CIFARS:
        cifar = CIFARS[spec.dataset]
        if options.classes == "coarse":
            if not cifar.others:
                raise UserError(
                    f"options.classes=coarse, but {spec.dataset} has no coarse labels.", "Use --dataset cifar100."
                )
            cifar = cifar.coarse()
        if spec.sample:
            return miniature(cifar.classes, others=cifar.others)
        return read_cifar(cifar, spec.data_root, fetch=spec.data.download, progress=_show_download)
    if spec.dataset != "image_folder":
        raise UserError(
            f"The vision backbone cannot read the data set {spec.dataset!r}.", "List what it can read: meltr list"
        )
    if spec.sample:
        return miniature(4)
    skipped: list[str] | None = [] if spec.data.allow_missing else None
    found = read_image_folder(spec.data_root, size=options.image_size or FOLDER_SIZE, skipped=skipped)
    if skipped:
        context.notes.append(f"{len(skipped)} images cannot be read; skipped: {', '.join(skipped)}")
    return found


def _show_download(done: int, total: int | None) -> None:
    """Show the progress of a download, in bytes, on a terminal."""
    if sys.stderr.isatty():
        whole = f" of {total / 2**20:.0f}" if total else ""
        end = "\n" if done == total else ""
        print(f"\r  {done / 2**20:.0f}{whole} MiB", end=end, file=sys.stderr, flush=True)
