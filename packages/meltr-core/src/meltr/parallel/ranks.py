"""The processes of a run: joining them from torchrun's environment, and exchanging small values."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from meltr.devices import resolve_device
from meltr.errors import MeltrError, UserError
from meltr.parallel.heartbeat import Heartbeat

T = TypeVar("T")

BUCKET = 2**24
"""Number of elements that `Ranks.mean_` sends in one all-reduce."""

SETTLE = 0.2
"""Seconds to wait until gloo's threads have released the tensors of the last exchange.

The threads need the interpreter for this, even after the group is destroyed. An interpreter that is already shutting
down kills such a thread, and with it the process ("terminate called without an active exception", SIGABRT).
"""

NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
HINT = "Start it with torchrun: torchrun --nproc-per-node 2 -m meltr run ..."


@dataclass(frozen=True)
class Ranks:
    """The processes that share a run; in a single process every exchange is the identity.

    Args:
        rank: Rank of this process.
        size: Number of processes.
        device: Device of this process.
    """

    rank: int
    size: int
    device: torch.device

    @classmethod
    def single(cls, device: torch.device) -> Ranks:
        """Return the ranks of a run with a single process."""
        return cls(0, 1, device)

    @classmethod
    def current(cls) -> Ranks:
        """Return the ranks of torch's default process group, or a single process if there is no group."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls.single(resolve_device("auto"))
        on_gpu = "nccl" in str(dist.get_backend())
        device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
        return cls(dist.get_rank(), dist.get_world_size(), device)

    @property
    def is_first(self) -> bool:
        """True for rank 0, the process that writes files and prints."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over the processes, of the same shape and bitwise equal on all ranks."""
        if self.size == 1:
            return values
        total = values.detach().clone()
        dist.all_reduce(total)
        return total

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over the processes, of the same shape and bitwise equal on all ranks."""
        return values if self.size == 1 else self.sum(values) / self.size

    def mean_(self, tensors: Sequence[Tensor | None], shapes: Sequence[Tensor]) -> list[Tensor | None]:
        """Return the means over the processes of a list of tensors, with a few large all-reduces.

        An entry that is None in all processes stays None; one that is None in some processes counts as zero there.

        Args:
            tensors: One entry per parameter.
            shapes: Tensors of the same shapes, types and devices, for the zeros.
        """
        if self.size == 1:
            return list(tensors)
        present = torch.tensor([tensor is not None for tensor in tensors], dtype=torch.int32, device=self.device)
        dist.all_reduce(present, dist.ReduceOp.MAX)
        found: list[Tensor | None] = [None] * len(tensors)
        for bucket in _buckets([number for number, wanted in enumerate(present.tolist()) if wanted], shapes):
            parts = [tensors[number] for number in bucket]
            whole = [
                torch.zeros_like(shapes[n]) if part is None else part for n, part in zip(bucket, parts, strict=True)
            ]
            dtype = torch.promote_types(torch.float32, whole[0].dtype)
            flat = torch.cat([part.flatten().to(dtype) for part in whole])
            dist.all_reduce(flat)
            flat /= self.size
            for number, part, piece in zip(bucket, whole, flat.split([part.numel() for part in whole]), strict=True):
                found[number] = piece.view_as(part).to(part.dtype)
        return found

    def largest(self, number: int) -> int:
        """Return the largest of the processes' numbers; it travels by the CPU, so that no accelerator waits."""
        if self.size == 1:
            return number
        box = torch.tensor([number])
        dist.all_reduce(box, dist.ReduceOp.MAX)
        return int(box)

    def decide(self, decision: Callable[[], T]) -> T:
        """Return in every process what `decision` returns in the first one, or raise its error everywhere.

        Args:
            decision: Called by rank 0 alone.

        Raises:
            MeltrError: What `decision` raised.
        """
        outcome: tuple[Any, MeltrError | None] = (None, None)
        if self.is_first:
            try:
                outcome = (decision(), None)
            except MeltrError as error:
                outcome = (None, error)
        value, failed = self.broadcast_object(outcome)
        if failed is not None:
            raise failed
        found: T = value
        return found

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Copy the values of rank 0 to every process, in place."""
        if self.size > 1:
            dist.broadcast(tensor, 0)
        return tensor

    def broadcast_object(self, value: Any) -> Any:
        """Return the value of rank 0 in every process."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, 0, device=self.device)
        return box[0]

    def gather_objects(self, value: Any) -> list[Any]:
        """Return the values of all processes, in rank order."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def barrier(self) -> None:
        """Wait until all processes have reached this call."""
        if self.size > 1:
            dist.barrier()


def _buckets(numbers: Sequence[int], shapes: Sequence[Tensor]) -> Iterator[list[int]]:
    """Yield buckets of indices whose tensors share type and device and hold about `BUCKET` elements in total."""
    bucket: list[int] = []
    elements = 0
    for number in numbers:
        last, this = shapes[bucket[-1] if bucket else number], shapes[number]
        if bucket and (elements >= BUCKET or (last.dtype, last.device) != (this.dtype, this.device)):
            yield bucket
            bucket, elements = [], 0
        bucket.append(number)
        elements += this.numel()
    if bucket:
        yield bucket


@contextmanager
def joined(
    device: str,
    resume: str = "Continue with: meltr run --resume RUN, or let torchrun --max-restarts do it.",
    *,
    timeout: float | None = None,
) -> Iterator[Ranks]:
    """Join the processes started by torchrun; without torchrun there is a single process and nothing is set up.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``; with a single process also ``cuda:1`` or ``mps``.
        resume: Hint for the user if another process died.
        timeout: Seconds that a process waits for the others in an exchange; None: as long as torch does.

    Raises:
        UserError: If the environment is incomplete, or there are fewer GPUs than processes on this machine.
        MeltrError: If another process stopped while this one waited for it.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks.single(resolve_device(device))
        return
    missing = [name for name in NEEDED if not os.environ.get(name)]
    if missing:
        raise UserError(f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(missing)} is not set.", HINT)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    mine = _own_device(device, int(os.environ["LOCAL_RANK"]))
    heart = None
    try:
        _initialise(mine, rank, size, timeout)
        heart = Heartbeat(_store(), rank, size)
        heart.start()
        yield Ranks(rank, size, mine)
    except RuntimeError as error:
        if not lost_a_peer(error):
            raise
        found = "" if heart is None else heart.missing()
        waited = f" It waited {timeout:g} s (train.rank_timeout)." if timeout and "imed out" in str(error) else ""
        raise MeltrError(
            f"Process {rank} of {size} lost another one: {found or 'it died or stopped answering'}.{waited}", resume
        ) from error
    finally:
        if heart is not None:
            heart.stop()
        if dist.is_initialized():
            dist.destroy_process_group()
            time.sleep(SETTLE)


def lost_a_peer(error: RuntimeError) -> bool:
    """Return True if an error of a collective operation means that another process is gone."""
    if isinstance(error, dist.DistError):
        return True
    words = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused", "Timed out")
    text = str(error)
    return ("gloo" in text.lower() or "nccl" in text.lower()) and any(word.lower() in text.lower() for word in words)


def _own_device(device: str, local_rank: int) -> torch.device:
    """Return the device of the process with this local rank."""
    kind, _, index = device.partition(":")
    if index or kind == "mps":
        raise UserError(f"device={device} cannot be shared by several processes.", "Use --device auto, cuda or cpu.")
    if kind == "cpu" or (kind == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise UserError(
            f"There are {count} CUDA devices here, but torchrun started at least {local_rank + 1} processes.",
            f"Use torchrun --nproc-per-node {count}, or --device cpu." if count else "Use --device cpu.",
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _initialise(device: torch.device, rank: int, size: int, timeout: float | None) -> None:
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    patience = None if timeout is None else timedelta(seconds=timeout)
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        dist.init_process_group(backend, rank=rank, world_size=size, timeout=patience)
        return
    # torchrun's store outlives a restart: without its own prefix, a new attempt finds the addresses of the dead one.
    dist.init_process_group(backend, store=_store(), rank=rank, world_size=size, timeout=patience)


def _store() -> Any:
    """Return a new connection to the store of the processes, for this attempt of torchrun."""
    kinds: Any = dist
    store = kinds.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return kinds.PrefixStore(f"meltr/{attempt}", store)
