"""Checkpoints of sharded weights with torch.distributed.checkpoint: every process writes and reads its own part.

Only tensors are stored: weights, buffers, and the optimiser's state by parameter name. They can be read by any number
of processes, including a single one without a process group. Reading runs no code. Torch's own reader unpickles the
index of a checkpoint without restriction; so the index is read here, and only the few types that it needs are allowed.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from meltr.errors import UserError
from meltr.parallel.data_parallel import sharded_modules
from meltr.torch_private import CHECKPOINT_INDEX_TYPES

MODEL, OPTIMIZER = "model.", "optimizer."


class _IndexUnpickler(pickle._Unpickler):
    """Unpickles the index of a checkpoint: torch's record types, sizes, data types, layouts and paths as text.

    Based on the standard library's pure-Python unpickler. Its memo is a dict, so a huge memo index costs no memory.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        """Return a type that an index may name; reject everything else."""
        if CHECKPOINT_INDEX_TYPES.get(name) == module:
            return super().find_class(module, name)
        if module == "torch" and (name == "Size" or isinstance(getattr(torch, name, None), torch.dtype)):
            return getattr(torch, name)
        if module.startswith("pathlib") and name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"):
            return PurePath  # where the checkpoint was written; never used
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no checkpoint needs")

    def _load_build(self) -> None:
        """Reject setting attributes of a type, which would persist for the whole process."""
        if callable(self.stack[-2]):  # type: ignore[attr-defined]
            raise pickle.UnpicklingError("it changes a type")
        pickle._Unpickler.load_build(self)  # type: ignore[attr-defined]

    dispatch[pickle.BUILD[0]] = _load_build


class _Writer(FileSystemWriter):
    """Torch's writer, except that the index stores its folder as text instead of a pathlib object."""

    def storage_meta(self) -> StorageMeta:
        """Return the metadata of this save for the index."""
        return StorageMeta(checkpoint_id=str(self.path), save_id=self.save_id)


class SafeReader(FileSystemReader):
    """Torch's reader of checkpoint folders, except that the index is read without running code."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return the index of the checkpoint.

        Raises:
            UserError: If it is missing, broken or not an index.
        """
        folder = Path(self.path)
        try:
            with (folder / ".metadata").open("rb") as file:
                index = _IndexUnpickler(file).load()
        except FileNotFoundError:
            raise UserError(
                f"{folder} is not a sharded checkpoint: it has no .metadata.", "Was it copied completely?"
            ) from None
        except Exception as error:
            raise UserError(
                f"Cannot read {folder / '.metadata'}: {error}", "It was changed or copied incompletely."
            ) from error
        if not isinstance(index, Metadata):
            raise UserError(f"{folder / '.metadata'} holds a {type(index).__name__}, not the index of a checkpoint.")
        for each in (index.storage_data or {}).values():
            if not isinstance(each.relative_path, str) or Path(each.relative_path).name != each.relative_path:
                raise UserError(f"{folder / '.metadata'} names a file outside the checkpoint: {each.relative_path}")
        index.storage_meta = index.storage_meta or StorageMeta()
        index.storage_meta.load_id = self.load_id
        return index


def save_sharded(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write weights, buffers and the optimiser's state; every process calls this and writes its part.

    Args:
        folder: The folder of the checkpoint; created.
        model: The backbone, sharded or not.
        optimizer: Its optimiser.

    Raises:
        OSError: If a process cannot write; all processes raise it.
    """
    try:
        with _quiet_alone():
            save(_tensors(model, optimizer), storage_writer=_Writer(folder))
    except CheckpointException as error:  # not a subclass of Exception: no caller would catch it
        raise OSError(_first(error)) from error


def load_sharded(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    """Load a checkpoint of `save_sharded` into a model and its optimiser, sharded in any way or not at all.

    Raises:
        UserError: If the checkpoint is broken or belongs to another model; the message names missing, unexpected and
            reshaped entries.
    """
    reader = SafeReader(folder)
    stored = _stored(reader.read_metadata())
    _reshard(model)
    _compare(folder, stored, {f"{MODEL}{name}": tensor for name, tensor in model.state_dict().items()})
    if optimizer is not None:
        _make_room(stored, model, optimizer)
    wanted = _tensors(model, optimizer)
    _load(wanted, reader, folder)
    model.load_state_dict({k.removeprefix(MODEL): v for k, v in wanted.items() if k.startswith(MODEL)})


def read_full(folder: Path) -> dict[str, Tensor]:
    """Return weights and buffers by name, as full tensors on the CPU; needs no process group.

    Raises:
        UserError: If the checkpoint is broken.
    """
    reader = SafeReader(folder)
    stored = _stored(reader.read_metadata())
    whole = {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)
        for key, entry in stored.items()
        if key.startswith(MODEL)
    }
    _load(whole, reader, folder, alone=True)
    return {key.removeprefix(MODEL): tensor for key, tensor in whole.items()}


def load_full(
    tensors: Mapping[str, Tensor],
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    state: Mapping[str, Any] | None,
) -> None:
    """Load a checkpoint of full tensors into a sharded model; every process takes its part.

    Args:
        tensors: Weights and buffers by name, as full tensors.
        model: The sharded backbone.
        optimizer: Its optimiser.
        state: The state dict of an optimiser of the same parameters, with full tensors.

    Raises:
        UserError: If the tensors belong to another model.
    """
    _reshard(model)
    own = model.state_dict()
    _compare(Path("the checkpoint"), tensors, own)
    model.load_state_dict({name: _like(tensor, own[name]) for name, tensor in tensors.items()})
    if optimizer is None or state is None:
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    parts = {
        number: {
            key: _like(value, parameters[number])
            if isinstance(value, Tensor) and value.shape == parameters[number].shape
            else value
            for key, value in each.items()
        }
        for number, each in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": parts})


def _like(tensor: Tensor, target: Tensor) -> Tensor:
    """Return this process' part of a full tensor, sharded like `target`."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(target, DTensor):
        return tensor
    mesh, placements = target.device_mesh, target.placements
    return distribute_tensor(tensor.to(target.device), mesh, placements, src_data_rank=None)


def _reshard(model: nn.Module) -> None:
    for module in sharded_modules(model):
        module.reshard()


def _names(model: nn.Module) -> dict[int, str]:
    return {id(parameter): name for name, parameter in model.named_parameters()}


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, Any]:
    """Return weights, buffers and the optimiser's state as one flat dict; the tensors are the model's own."""
    _reshard(model)
    found = {f"{MODEL}{name}": tensor for name, tensor in model.state_dict().items()}
    names = _names(model)
    for parameter, state in {} if optimizer is None else optimizer.state.items():
        entries = {f"{OPTIMIZER}{names[id(parameter)]}.{key}": value for key, value in state.items()}
        found.update({key: value for key, value in entries.items() if isinstance(value, Tensor)})
    return found


def _make_room(stored: Mapping[str, TensorStorageMetadata], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Create the optimiser's state entries that the checkpoint holds, filled with zeros."""
    for name, parameter in model.named_parameters():
        prefix = f"{OPTIMIZER}{name}."
        for key, entry in stored.items():
            if key.startswith(prefix) and "." not in key.removeprefix(prefix):
                same = entry.size == parameter.shape and len(entry.size) > 0
                empty = torch.zeros_like(parameter) if same else torch.zeros(entry.size, dtype=entry.properties.dtype)
                optimizer.state[parameter][key.removeprefix(prefix)] = empty.detach()


def _stored(index: Metadata) -> dict[str, TensorStorageMetadata]:
    entries = index.state_dict_metadata.items()
    return {key: entry for key, entry in entries if isinstance(entry, TensorStorageMetadata)}


def _compare(where: Path, stored: Mapping[str, Any], own: Mapping[str, Tensor]) -> None:
    """Check that a checkpoint has the entries of the model with the same shapes; UserError if not."""
    theirs = {key: entry for key, entry in stored.items() if not key.startswith(OPTIMIZER)}
    sizes = {k: tuple(e.size if isinstance(e, TensorStorageMetadata) else e.shape) for k, e in theirs.items()}
    problems = {
        "missing": sorted(own.keys() - theirs.keys()),
        "unexpected": sorted(theirs.keys() - own.keys()),
        "of another shape": sorted(k for k in own.keys() & theirs.keys() if tuple(own[k].shape) != sizes[k]),
    }
    named = [f"{label} {len(keys)} (first: {keys[0].removeprefix(MODEL)})" for label, keys in problems.items() if keys]
    if named:
        raise UserError(f"{where} does not belong to this backbone: {'; '.join(named)}.", "Is it from another run?")


def _load(tensors: dict[str, Any], reader: SafeReader, folder: Path, *, alone: bool = False) -> None:
    try:
        with _quiet_alone():
            load(tensors, storage_reader=reader, no_dist=alone)
    except (CheckpointException, OSError, RuntimeError, ValueError) as error:
        reason = _first(error) if isinstance(error, CheckpointException) else str(error)
        raise UserError(f"Cannot read {folder}: {reason}", "It was changed or copied incompletely.") from error


def _first(error: CheckpointException) -> str:
    """Return the error message of the first process that failed."""
    rank, (cause, _) = min(error.failures.items())
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    return lines[0] if len(error.failures) == 1 and rank == 0 else f"process {rank}: {lines[0]}"


@contextmanager
def _quiet_alone() -> Iterator[None]:
    """Silence torch's warning about a missing process group, which is intended in a single process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield
