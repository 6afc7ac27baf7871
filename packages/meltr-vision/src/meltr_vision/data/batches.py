"""Batches of images in device memory: of training, a pure function of (seed, epoch, index), and of evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from meltr.data.loader import equal_parts, part_of_batch
from meltr.parallel.gather import share_of
from meltr.seeding import derive
from meltr_vision.data.augmentation import crop_and_flip
from meltr_vision.data.transforms import Pipeline


class ImageBatches:
    """Training batches ``{"image": (B, C, S, S) float32, "label": (B,) int64}`` of images in device memory.

    With other labels of the images, they are the entry ``other``, (B,) int64.

    Order and augmentation are drawn on the CPU from (seed, epoch) and (seed, epoch, index), and copied to the device in
    one small transfer per batch. So batches do not depend on the device, and any batch can be made on its own.

    Args:
        images: (N, C, S, S) uint8, on the run's device; shared with other splits.
        labels: (N,) int64, on the same device.
        indices: Indices of the images of this split, (n,).
        others: Other labels of the images, (N,) int64, on the same device; None: there are none.
        pipeline: Augmentation and normalisation.
        batch_size: Images per batch over all processes; a smaller set gives one smaller batch.
        seed: Seed of order and augmentation.
        drop_last: True: skip the last, smaller batch if there is more than one.
        rank: Rank of this process, which gets its own part of every batch.
        world_size: Number of processes that share every batch.

    Raises:
        ValueError: If there are more processes than images.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        indices: np.ndarray[tuple[int], np.dtype[np.int64]],
        *,
        others: Tensor | None = None,
        pipeline: Pipeline,
        batch_size: int,
        seed: int,
        drop_last: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.images, self.labels, self.others, self.pipeline = images, labels, others, pipeline
        self.indices = torch.from_numpy(np.ascontiguousarray(indices))
        self.batch_size = equal_parts(min(batch_size, len(indices)), world_size)
        self.seed, self.drop_last = seed, drop_last
        self._rank, self._world_size = rank, world_size

    @property
    def size(self) -> int:
        """Number of examples."""
        return len(self.indices)

    def __len__(self) -> int:
        whole, rest = divmod(self.size, self.batch_size)
        return whole if self.drop_last or rest < self._world_size else whole + 1

    def batches(self, epoch: int, start: int = 0) -> Iterator[dict[str, Tensor]]:
        """Yield the batches `start`, `start` + 1, ... of `epoch`."""
        generator = torch.Generator().manual_seed(derive(self.seed, "order", epoch))
        order = self.indices[torch.randperm(self.size, generator=generator)]
        for index in range(start, len(self)):
            chosen = order[index * self.batch_size : (index + 1) * self.batch_size]
            yield self._batch(chosen, torch.Generator().manual_seed(derive(self.seed, "augmentation", epoch, index)))

    def _batch(self, chosen: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        pipeline, count = self.pipeline, len(chosen)
        offsets = torch.randint(2 * pipeline.padding + 1, (2, count), generator=generator)
        flips = torch.randint(2, (1, count), generator=generator) * int(pipeline.flip)
        mine = part_of_batch(equal_parts(count, self._world_size), self._rank, self._world_size)
        plan = torch.cat([chosen[None], offsets, flips])[:, mine]
        if self.images.is_cuda:
            plan = plan.pin_memory()  # so that the host does not wait for the copy
        plan = plan.to(self.images.device, non_blocking=True)
        pixels = self.images[plan[0]]
        if pipeline.padding or pipeline.flip:
            pixels = crop_and_flip(
                pixels,
                top=plan[1],
                left=plan[2],
                flip=plan[3].bool(),
                padding=pipeline.padding,
                mode=pipeline.padding_mode,
            )
        batch = {"image": pipeline.normalise(pixels), "label": self.labels[plan[0]]}
        return batch if self.others is None else {**batch, "other": self.others[plan[0]]}


@dataclass(frozen=True)
class EvalSplit:
    """A split for evaluation, without augmentation.

    Args:
        images: (N, C, S, S) uint8 on the run's device; shared with other splits.
        labels: (N,) int64.
        indices: Indices of the images of this split, (n,) int64 on the CPU.
        pipeline: Normalisation; its augmentation is not used.
        names: Class names.
        files: File of each of the N images, if there are files.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    pipeline: Pipeline
    names: tuple[str, ...]
    files: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.indices)

    def batches(self, batch_size: int, rank: int = 0, world_size: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images (B, C, S, S) float32, labels (B,)) in order. The last batch may be smaller.

        Args:
            batch_size: Images per batch.
            rank: Rank of this process.
            world_size: Number of processes that share the batches.
        """
        whole = self.indices.to(self.images.device).split(batch_size)
        for chosen in share_of(whole, rank, world_size):
            yield self.pipeline.normalise(self.images[chosen]), self.labels[chosen]
