"""Damaged checkpoints: how they are found, and where a run continues instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from meltr.engine.checkpoints import MANIFEST_WRITTEN, Checkpoints, load_tensors, load_training
from meltr.errors import UserError
from meltr.folders.checkpoint_folder import LAST, CheckpointFolder, checkpoints_in, is_checkpoint_name
from meltr.folders.manifest import NAME, fault, has_manifest
from meltr.parallel.sharded import SafeReader

Say = Callable[[str], None]


def damage(path: Path, *, weights_only: bool = False) -> str | None:
    """Return in words what is wrong with a checkpoint; None if it is whole.

    Args:
        path: Its folder.
        weights_only: Look only at the backbone's weights, as an evaluation does.
    """
    checkpoint = CheckpointFolder(path)
    if has_manifest(path):
        return fault(path, checkpoint.step, checkpoint.weights if weights_only else None)
    if _had_manifest(checkpoint):
        return f"{NAME} is missing"
    return _unreadable(checkpoint, weights_only=weights_only)


def without_manifest(path: Path) -> bool:
    """Return whether a checkpoint was written by a version that wrote no manifests."""
    return not has_manifest(path)


def check(checkpoints: Checkpoints, path: Path, name: str, *, hint: str | None = None) -> None:
    """Check that the weights of a checkpoint are whole before they are used.

    Args:
        checkpoints: Those of the run.
        path: Folder of the checkpoint.
        name: How it was asked for, such as ``best``.
        hint: What to do otherwise; None: name the whole ones for ``--checkpoint``.

    Raises:
        UserError: If they are not: what is wrong, and which checkpoints are whole.
    """
    found = damage(path, weights_only=True)
    if found is None:
        return
    if hint is None:
        whole = [each.path.name for each in checkpoints_in(checkpoints.folder) if not damage(each.path)]
        hint = f"Choose a whole one with --checkpoint: {', '.join(whole)}." if whole else "No other one is whole."
    named = f"checkpoint {path.name}" + (f", which {name!r} names," if name != path.name else "")
    raise UserError(f"{named} in {checkpoints.folder} is damaged: {found}.", hint)


def choose_start(
    checkpoints: Checkpoints, run_dir: Path, *, had_one: bool, from_scratch: bool, say: Say
) -> Path | None:
    """Return the checkpoint that a run continues from: what ``last`` names, or else the newest whole one.

    Args:
        checkpoints: Those of the run.
        run_dir: Folder of the run, for the hint.
        had_one: Whether the run is known to have written a checkpoint.
        from_scratch: Start at step 0 where no checkpoint is whole.
        say: Told what was found.

    Returns:
        Its folder; None to start at step 0: the run has no checkpoint yet, or none is whole and `from_scratch`.

    Raises:
        UserError: If the run had checkpoints and none is whole.
    """
    last = checkpoints.target(LAST)
    there = checkpoints_in(checkpoints.folder)
    if last is None and not there and not had_one:
        return None
    first = [each.path for each in there if each.path.name == last]
    candidates = first + [each.path for each in reversed(there) if each.path.name != last]
    problems = [] if first else [_lost(last)]
    for path in candidates:
        found = damage(path)
        if found is None:
            if problems:
                say(f"{'; '.join(problems)}; continuing from step {CheckpointFolder(path).step}")
            if without_manifest(path):
                say(f"checkpoint {path.name} is of an earlier version and has no {NAME}: its files were not compared")
            return path.resolve()
        problems.append(f"checkpoint {path.name} is damaged: {found}")
    if from_scratch:
        say(f"{'; '.join(problems)}; starting from step 0, as asked")
        return None
    raise UserError(
        f"no checkpoint in {checkpoints.folder} is whole: {'; '.join(problems)}.",
        f"Bring back a whole one, or train from step 0: meltr run --resume {run_dir} --from-scratch",
    )


def _lost(last: str | None) -> str:
    if last is None:
        return f"there is no {LAST!r}"
    if not is_checkpoint_name(last):
        return f"{LAST!r} leads to {'itself' if last == LAST else repr(last)}"
    return f"{LAST!r} leads to {last}, which is not there"


def _had_manifest(checkpoint: CheckpointFolder) -> bool:
    try:
        with safe_open(checkpoint.combiner, "pt") as file:
            return (file.metadata() or {}).items() >= MANIFEST_WRITTEN.items()
    except (OSError, SafetensorError):
        return False


def _unreadable(checkpoint: CheckpointFolder, *, weights_only: bool) -> str | None:
    """Return why a checkpoint without a manifest cannot be read, None if it can."""
    try:
        if checkpoint.shards.is_dir() and not checkpoint.backbone.exists():
            SafeReader(checkpoint.shards).read_metadata()
        else:
            load_tensors(checkpoint.backbone)
        if not weights_only:
            load_tensors(checkpoint.combiner)
            load_training(checkpoint.training)
    except UserError as error:
        return error.message
    return None
