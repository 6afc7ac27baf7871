"""Checkpoints of w AND phi: written to a temporary folder and renamed, so that an interruption leaves no partial one.

A checkpoint is a folder ``checkpoints/step-000500``:

- ``backbone.safetensors``: weights and buffers of the backbone; or ``shards/``: the same and its optimiser's state,
  written by all processes that hold a part (torch.distributed.checkpoint);
- ``combiner.safetensors``: weights of the combiner, with its settings in the metadata;
- ``training.pt``: optimisers and counters, as plain values and tensors only;
- ``manifest.json``: sizes and checksums of these, see `meltr.folders.manifest`.

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
from meltr.engine.stable_bytes import sort_metadata
from meltr.errors import MeltrError, UserError
from meltr.folders.checkpoint_folder import (
    BEST,
    LAST,
    CheckpointFolder,
    checkpoint_at,
    checkpoints_in,
    is_checkpoint_name,
)
from meltr.folders.manifest import write_manifest
from meltr.limits import check_zip, from_json
from meltr.parallel.data_parallel import sharded_modules
from meltr.parallel.ranks import Ranks, lost_a_peer
from meltr.parallel.sharded import load_full, load_sharded, save_sharded

MANIFEST_WRITTEN = {"manifest": "sha256"}
"""Metadata of a combiner's file that say that its checkpoint had a manifest when it was written."""


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
        save_module(partial.combiner, combiner, settings=json.dumps(settings), **MANIFEST_WRITTEN)
        torch.save(training, partial.training)
        write_manifest(partial.path, final.step)
        before = final.path.with_name(f".{final.path.name}.before")
        shutil.rmtree(before, ignore_errors=True)
        if final.path.exists():
            final.path.rename(before)
        partial.path.rename(final.path)
        shutil.rmtree(before, ignore_errors=True)
        # `last` comes last: a run killed in between is resumed at the checkpoint before and writes both again.
        for link in (BEST, LAST) if best else (LAST,):
            self.point(link, final.path.name)
        self._prune()

    def target(self, link: str) -> str | None:
        """Return the name of the checkpoint that ``last`` or ``best`` names; None if there is no such link.

        The checkpoint need not be there; a link to something else is returned as it stands.
        """
        path = self.folder / link
        try:
            if path.is_symlink():
                return os.readlink(path)
            return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else None
        except OSError:
            return None

    def resolve(self, name: str) -> Path:
        """Return the folder of ``last``, ``best`` or ``step-000500``.

        Raises:
            UserError: If there is no checkpoint of that name, or ``last`` or ``best`` leads nowhere.
        """
        there = sorted(each.path.name for each in checkpoints_in(self.folder))
        links = [link for link in (BEST, LAST) if os.path.lexists(self.folder / link)]
        found = f"Found: {', '.join([*links, *there]) or 'none'}."
        target = self.target(name) if name in (LAST, BEST) else name
        if target is None or (target == name and name not in (LAST, BEST) and name not in there):
            raise UserError(f"There is no checkpoint {name!r} in {self.folder}.", found)
        if not is_checkpoint_name(target):
            itself = "itself" if target == name else f"{target!r}, which is not a checkpoint"
            raise UserError(f"{self.folder / name} leads to {itself}.", found)
        if target not in there:
            raise UserError(f"{self.folder / name} leads to {target}, which is not there.", found)
        return (self.folder / target).resolve()

    def chosen(self, name: str) -> Path:
        """Return what `resolve` does, except that ``best`` means ``last`` if no validation split chose a best one."""
        return self.resolve(LAST if name == BEST and not os.path.lexists(self.folder / BEST) else name)

    def describe_last(self) -> str:
        """Return the path of the last complete checkpoint, or a text saying that there is none."""
        try:
            return str(self.resolve(LAST))
        except UserError:
            return "no checkpoint yet"

    def point(self, link: str, name: str) -> None:
        """Let ``last`` or ``best`` name a checkpoint."""
        temporary = self.folder / f".{link}.partial"
        temporary.unlink(missing_ok=True)
        try:
            temporary.symlink_to(name)
        except OSError:
            temporary.write_text(name)
        target = self.folder / link
        os.replace(temporary, target)

    def _prune(self) -> None:
        needed = {self.target(link) for link in (LAST, BEST)}
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
    sort_metadata(path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a file of `save_module`, with tied tensors under all their names.

    Raises:
        UserError: If the file is missing or broken.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            tied = from_json((file.metadata() or {}).get("tied", "{}"), path)
        return {**tensors, **{name: tensors[source] for name, source in tied.items()}}
    except (OSError, SafetensorError, UserError, AttributeError, KeyError, TypeError) as error:
        raise UserError(f"Cannot read {path}: {error}", "It was changed or copied incompletely.") from error


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
        check_zip(path)
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"Cannot read {path}: {reason}", "It was changed or copied incompletely.") from error
    return state
