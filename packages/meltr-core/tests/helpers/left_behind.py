"""What a killed run leaves behind, without killing one."""

from __future__ import annotations

import shutil
from pathlib import Path

import meltr


class LeftBehind:
    """An observer that copies the folder of a run when a checkpoint is complete: as a kill at that moment leaves it.

    So one run gives both the uninterrupted end and the folder of a run that was interrupted.

    Args:
        checkpoint: Name of the checkpoint.
        copy: Where the copy goes.
    """

    def __init__(self, checkpoint: str, copy: Path) -> None:
        self.checkpoint, self.copy = checkpoint, copy

    @meltr.hookimpl
    def on_checkpoint(self, path: Path) -> None:
        if path.name == self.checkpoint:
            shutil.copytree(path.parents[1], self.copy, symlinks=True)
