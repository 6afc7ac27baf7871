"""The folder of one checkpoint and the names of its files."""

from __future__ import annotations

import os
import re
from pathlib import Path

from meltr.errors import UserError

LAST, BEST = "last", "best"
"""Links beside the checkpoints: to the newest one, and to the best one on the validation split."""

_PREFIX = "step-"


class CheckpointFolder:
    """Paths of a checkpoint, ``checkpoints/step-000500``.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.backbone = path / "backbone.safetensors"
        self.shards = path / "shards"
        self.combiner = path / "combiner.safetensors"
        self.training = path / "training.pt"

    @property
    def step(self) -> int:
        """Inner steps taken before the checkpoint."""
        return int(self.path.name.removeprefix(_PREFIX))

    @property
    def weights(self) -> tuple[str, ...]:
        """The names of what holds the backbone: one file, or a folder of shards."""
        return (self.backbone.name, self.shards.name)

    @property
    def partial(self) -> CheckpointFolder:
        """Where the checkpoint is written before it is renamed."""
        return CheckpointFolder(self.path.with_name(f".{self.path.name}.partial"))


def checkpoint_at(folder: Path, step: int) -> CheckpointFolder:
    """Return the checkpoint of an inner step, whether or not it exists.

    Args:
        folder: The run's ``checkpoints`` folder.
        step: Inner steps taken.
    """
    return CheckpointFolder(folder / f"{_PREFIX}{step:06d}")


def checkpoints_in(folder: Path) -> list[CheckpointFolder]:
    """Return the complete checkpoints in a run's ``checkpoints`` folder, oldest first.

    Raises:
        UserError: If there is no permission to read the folder, which would look empty.
    """
    try:
        names = os.listdir(folder)
        found = [folder / name for name in names if is_checkpoint_name(name) and (folder / name).is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror or error}.", "Check its permissions.") from error
    return sorted(map(CheckpointFolder, found), key=lambda each: each.step)


def is_checkpoint_name(name: str) -> bool:
    """Return whether a folder of this name in ``checkpoints`` is a complete checkpoint."""
    return re.fullmatch(rf"{_PREFIX}[0-9]+", name) is not None
