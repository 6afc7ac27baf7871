"""Checkpoints of w AND phi: written to a temporary folder and renamed, so that an interruption leaves no partial one.

A checkpoint is a folder ``checkpoints/step-000500``:

- ``backbone.safetensors``: weights and buffers of the backbone; or ``shards/``: the same and its optimiser's state,
    written by all processes that hold a part (torch.distributed.checkpoint);
  - ``combiner.safetensors``: weights of the combiner, with its settings in the metadata;
  - ``training.pt``: optimisers and counters, as plain values and tensors only.

``checkpoints/last`` and ``checkpoints/best`` are links (small text files on systems without links).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from meltr.combiners.base import Combiner
from meltr.errors import MeltrError, UserError
from meltr.folders.checkpoint_folder import BEST, LAST, CheckpointFolder, checkpoint_at, checkpoints_in
from meltr.parallel.data_parallel import sharded_modules
from meltr.parallel.ranks import Ranks, lost_a_peer
from meltr.parallel.sharded import load_full, load_sharded, save_sharded


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: The run's ``checkpoints`` folder.
        keep: Number of checkpoints to keep besides ``last`` and ``best``.
    """

    def __init__(self, folder: Path, keep: int = 0) -> None:
        self.folder = folder
        self.keep = keep

    def save(
        self,
        step: int,
        *,
        model: nn.Module,
        combiner: nn.Module,
        optimizer: torch.optim.Optimizer,
        training: dict[str, Any],
        best: bool,
        ranks: Ranks,
    ) -> Path:
        """Write a checkpoint and point ``last`` (and ``best``) at it; delete checkpoints that are no longer needed.

        All processes call it. Rank 0 writes; with sharded weights, every process also writes its shards.

        Args:
            step: Inner steps taken.
            model: The backbone.
            combiner: The combiner.
            optimizer: The optimiser of the backbone.
            training: The other state that resuming needs: plain values and tensors.
            best: Whether this is the best checkpoint so far.
            ranks: The processes of the run.

        Raises:
            MeltrError: If the disk is full or not writable; earlier checkpoints are not changed.
        """
        final = checkpoint_at(self.folder, step)
        partial = final.partial
        sharded = bool(sharded_modules(model))
        try:
            if ranks.is_first:
                shutil.rmtree(partial.path, ignore_errors=True)
                partial.path.mkdir(parents=True)
            ranks.barrier()
            if sharded:
                save_sharded(partial.shards, model, optimizer)
            if ranks.is_first:
                if not sharded:
                    save_module(partial.backbone, model)
                    training = {**training, "optimizer": optimizer.state_dict()}
                self._complete(partial, final, combiner, training, best=best)
            ranks.barrier()
        except (OSError, SafetensorError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and lost_a_peer(error):
                raise
            free = shutil.disk_usage(self.folder).free / 2**20 if self.folder.is_dir() else float("nan")
            shutil.rmtree(partial.path, ignore_errors=True)
            reason = str(error).splitlines()[0]
            raise MeltrError(
                f"Could not write checkpoint {final.path} ({free:,.0f} MiB were free): {reason}",
                f"Free some disk space or choose another --output-dir. Last checkpoint: {self.describe_last()}.",
            ) from error
        return final.path

    def _complete(
        self,
        partial: CheckpointFolder,
        final: CheckpointFolder,
        combiner: nn.Module,
        training: dict[str, Any],
        *,
        best: bool,
    ) -> None:
        settings = combiner.settings() if isinstance(combiner, Combiner) else {}
        save_module(partial.combiner, combiner, settings=json.dumps(settings))
        torch.save(training, partial.training)
        shutil.rmtree(final.path, ignore_errors=True)
        partial.path.rename(final.path)
        for link in (LAST, BEST) if best else (LAST,):
            self._point(link, final.path.name)
        self._prune()

    def resolve(self, name: str) -> Path:
        """Return the folder of ``last``, ``best`` or ``step-000500``.

        Raises:
            UserError: If there is no checkpoint of that name.
        """
        path = self.folder / name
        if path.is_file():
            path = self.folder / path.read_text().strip()
        if not path.is_dir():
            there = sorted(p.name for p in self.folder.glob("*") if not p.name.startswith("."))
            raise UserError(
                f"There is no checkpoint {name!r} in {self.folder}.", f"Found: {', '.join(there) or 'none'}."
            )
        return path.resolve()

    def chosen(self, name: str) -> Path:
        """Return what `resolve` does, except that ``best`` means ``last`` if no validation split chose a best one."""
        return self.resolve(LAST if name == BEST and not (self.folder / BEST).exists() else name)

    def describe_last(self) -> str:
        """Return the path of the last complete checkpoint, or a text saying that there is none."""
        try:
            return str(self.resolve(LAST))
        except UserError:
            return "no checkpoint yet"

    def _point(self, link: str, name: str) -> None:
        temporary = self.folder / f".{link}.partial"
        temporary.unlink(missing_ok=True)
        try:
            temporary.symlink_to(name)
        except OSError:
            temporary.write_text(name)
        target = self.folder / link
        os.replace(temporary, target)

    def _prune(self) -> None:
        needed = {self.resolve(link).name for link in (LAST, BEST) if (self.folder / link).exists()}
        others = [each.path for each in checkpoints_in(self.folder) if each.path.name not in needed]
        for old in others[: max(0, len(others) - self.keep)]:
            shutil.rmtree(old, ignore_errors=True)


def save_module(path: Path, module: nn.Module, **metadata: str) -> None:
    """Write the state dict of `module`; tensors that share memory are stored once and listed in the metadata."""
    stored: dict[str, Tensor] = {}
    first: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {}
    tied: dict[str, str] = {}
    for name, tensor in module.state_dict().items():
        key = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()))
        if tensor.numel() and key in first:
            tied[name] = first[key]
        else:
            first[key] = name
            stored[name] = tensor.detach().to("cpu", copy=True).contiguous()
    save_file(stored, path, metadata={"format": "pt", "tied": json.dumps(tied), **metadata})


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a file of `save_module`, with tied tensors under all their names.

    Raises:
        UserError: If the file is missing or broken.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            tied = json.loads((file.metadata() or {}).get("tied", "{}"))
    except (OSError, SafetensorError) as error:
        raise UserError(f"Cannot read {path}: {error}", "Choose another checkpoint with --checkpoint.") from error
    return {**tensors, **{name: tensors[source] for name, source in tied.items()}}


def load_module(path: Path, module: nn.Module, what: str) -> None:
    """Load weights into `module`; the keys must match exactly.

    Raises:
        UserError: If the file belongs to another model, with the names of missing, unexpected and reshaped keys.
    """
    tensors = load_tensors(path)
    own = module.state_dict()
    missing = sorted(own.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - own.keys())
    reshaped = sorted(k for k in own.keys() & tensors.keys() if own[k].shape != tensors[k].shape)
    if missing or unexpected or reshaped:
        parts = [
            f"{label} {len(keys)} (first: {keys[0]})"
            for label, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
            if keys
        ]
        raise UserError(f"{path} does not belong to this {what}: {'; '.join(parts)}.", "Is it from another run?")
    module.load_state_dict(tensors)


def load_backbone(
    path: Path,
    model: nn.Module,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    state: Mapping[str, Any] | None = None,
) -> None:
    """Load the backbone of a checkpoint; both the checkpoint and the model may be sharded or not.

    Args:
        path: Folder of the checkpoint.
        model: The backbone.
        optimizer: Its optimiser, which is loaded too.
        state: Content of ``training.pt``, which holds the optimiser of a backbone that is not sharded.

    Raises:
        UserError: If the file belongs to another model.
    """
    checkpoint = CheckpointFolder(path)
    if not checkpoint.backbone.exists() and checkpoint.shards.is_dir():
        load_sharded(checkpoint.shards, model, optimizer)
        return
    if sharded_modules(model):
        load_full(load_tensors(checkpoint.backbone), model, optimizer, None if state is None else state["optimizer"])
        return
    load_module(checkpoint.backbone, model, "backbone")
    if optimizer is not None and state is not None:
        optimizer.load_state_dict(state["optimizer"])


def load_training(path: Path) -> dict[str, Any]:
    """Read ``training.pt``.

    Raises:
        UserError: If it is missing or broken.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"Cannot read {path}: {error}", "Resume from another checkpoint, or start again.") from error
    return state
