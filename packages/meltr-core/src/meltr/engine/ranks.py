"""TEMPORARY stand-in."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Ranks:
    rank: int
    size: int
    device: torch.device

    @classmethod
    def single(cls, device):
        return cls(0, 1, torch.device(device))

    @classmethod
    def current(cls):
        return cls(dist.get_rank(), dist.get_world_size(), torch.device("cpu"))

    @property
    def is_first(self):
        return self.rank == 0

    def mean(self, t):
        if self.size == 1:
            return t
        t = t.clone()
        dist.all_reduce(t)
        return t / self.size

    def sum(self, t):
        if self.size == 1:
            return t
        t = t.clone()
        dist.all_reduce(t)
        return t

    def mean_(self, ts):
        for t in ts:
            if t is not None:
                dist.all_reduce(t)
                t /= self.size
        return ts

    def broadcast(self, t):
        if self.size > 1:
            dist.broadcast(t, 0)
        return t

    def broadcast_object(self, o):
        if self.size == 1:
            return o
        l = [o]
        dist.broadcast_object_list(l, 0)
        return l[0]

    def barrier(self):
        if self.size > 1:
            dist.barrier()

    def gather_objects(self, o):
        if self.size == 1:
            return [o]
        l = [None] * self.size
        dist.all_gather_object(l, o)
        return l


@contextmanager
def joined(device):
    from meltr.engine.run import resolve_device

    n = int(os.environ.get("WORLD_SIZE", "1"))
    if n == 1:
        yield Ranks.single(resolve_device(device))
        return
    dist.init_process_group("gloo")
    try:
        yield Ranks(dist.get_rank(), n, torch.device("cpu"))
    finally:
        dist.destroy_process_group()
