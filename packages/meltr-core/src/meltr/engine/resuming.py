"""A resumed run: from which checkpoint it goes on, and what became of the best one."""

from __future__ import annotations

from pathlib import Path

from meltr.engine.checkpoints import Checkpoints
from meltr.engine.recovery import choose_start, damage
from meltr.engine.trainer import Trainer
from meltr.folders.checkpoint_folder import BEST, checkpoint_at
from meltr.folders.run_folder import RunFolder


class Resumed:
    """How a run in a folder goes on.

    Args:
        folder: The folder.
        from_scratch: Start at step 0 if no checkpoint is whole.
    """

    def __init__(self, folder: RunFolder, *, from_scratch: bool) -> None:
        self._folder, self._from_scratch = folder, from_scratch
        self.warnings: list[str] = []
        """What was found on the way; known to the first process."""

    def load(self, trainer: Trainer, checkpoints: Checkpoints) -> None:
        """Load the checkpoint to continue from; all processes take the same.

        Raises:
            UserError: If the run had checkpoints and none is whole.
        """
        start: Path | None = trainer.ranks.decide(lambda: self._start(checkpoints))
        if start is None:
            return
        trainer.load(start)
        state = trainer.state
        if state.best is None or trainer.ranks.decide(lambda: self._point_best(checkpoints, state.best_step)):
            return
        state.forget_best()
        if trainer.step >= trainer.total_steps:
            state.due = True

    def _start(self, checkpoints: Checkpoints) -> Path | None:
        return choose_start(
            checkpoints,
            self._folder.path,
            had_one=self._folder.wrote_checkpoint,
            from_scratch=self._from_scratch,
            say=self.warnings.append,
        )

    def _point_best(self, checkpoints: Checkpoints, step: int) -> bool:
        """Let ``best`` name the checkpoint of a step again; return whether that is there and whole."""
        wanted = checkpoint_at(checkpoints.folder, step).path
        lost = damage(wanted, weights_only=True) if wanted.is_dir() else "it is not there"
        if lost is None:
            if checkpoints.target(BEST) != wanted.name:
                checkpoints.point(BEST, wanted.name)
            return True
        self.warnings.append(
            f"checkpoint {wanted.name}, the best one so far, is lost ({lost}); "
            "the best of the evaluations from here on counts"
        )
        return False
