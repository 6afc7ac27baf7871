"""Batches of images in device memory: a pure function of (seed, epoch, index), augmented by index arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from meltr.data.loader import equal_parts, part_of_batch
from meltr.devices import constant
from meltr.parallel.gather import share_of
from meltr.seeding import derive


@dataclass(frozen=True)
class Pipeline:
    """Augmentation and normalisation of images.

    Args:
        mean: Mean of each channel in 0..1, (C,), which is subtracted.
        std: Standard deviation of each channel in 0..1, (C,), which is divided by.
        image_size: Side that the model sees; images of another side are resized.
        flip: Random horizontal flip in training.
        padding: Pixels of padding before the random crop back to size in training; 0: no crop.
        padding_mode: ``zeros`` (black) or ``reflect``.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    flip: bool = True
    padding: int = 4
    padding_mode: str = "zeros"

    def normalise(self, pixels: Tensor) -> Tensor:
        """Map (B, C, S, S) of 0..255 to float32 ``(pixels / 255 - mean) / std``, resized to `image_size`."""
        mean, std = (constant(row, pixels.device).view(1, -1, 1, 1) * 255 for row in (self.mean, self.std))
        images = (pixels.float() - mean) / std
        if images.shape[-1] == self.image_size:
            return images
        return F.interpolate(
            images, size=(self.image_size, self.image_size), mode="bilinear", align_corners=False, antialias=True
        )


def crop_and_flip(pixels: Tensor, *, top: Tensor, left: Tensor, flip: Tensor, padding: int, mode: str) -> Tensor:
    """Pad each image by `padding`, crop a window of the original size at (top, left), and flip some of them.

    This is one gather for the whole batch, and nothing is padded in memory.

    Args:
        pixels: (B, C, S, S).
        top: (B,), first row of the window in the padded image, 0 to 2 padding.
        left: (B,), first column, 0 to 2 padding.
        flip: (B,) bool, True: flip horizontally after the crop.
        padding: Pixels on each side; below S for ``reflect``.
        mode: ``zeros`` or ``reflect`` (without repeating the edge).
    """
    count, channels, size, _ = pixels.shape
    span = torch.arange(size, device=pixels.device)
    rows = span + (top - padding)[:, None]
    columns = span + (left - padding)[:, None]
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    inside = None
    if mode == "reflect":
        rows, columns = (size - 1 - (size - 1 - each.abs()).abs() for each in (rows, columns))
    elif padding:
        valid_rows, valid_columns = ((each >= 0) & (each < size) for each in (rows, columns))
        inside = (valid_rows[:, :, None] & valid_columns[:, None, :])[:, None]
        rows, columns = rows.clamp(0, size - 1), columns.clamp(0, size - 1)
    places = (rows[:, :, None] * size + columns[:, None, :]).view(count, 1, -1).expand(-1, channels, -1)
    picked = pixels.reshape(count, channels, -1).gather(2, places).view_as(pixels)
    return picked if inside is None else picked * inside


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
