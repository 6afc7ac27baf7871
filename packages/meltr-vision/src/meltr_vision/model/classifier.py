"""A trunk with the heads of the losses; all images of a step go through one call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from meltr_vision.names import LABELS

ROTATIONS = 4
"""Quarter turns that the rotation head distinguishes."""

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class Classifier(nn.Module):
    """A trunk with a head for classes, and one for rotations and one for other labels where losses need them.

    All inputs of a step go through one call, so that torch.compile and DistributedDataParallel see one forward. The
    heads keep the initialisation of `torch.nn.Linear` (as in torchvision's ResNets), so the losses start near ln C and
    ln 4.

    Args:
        trunk: Maps images (B, C, H, W) to pooled features (B, F).
        features: F.
        classes: Number of classes.
        rotation: True: add the rotation head, F -> 4. Heads of auxiliary losses are built last, so the other weights do
            not depend on them.
        others: Classes of the other labels of the images, for their head, F -> others; 0: no such head.
        batchnorm: ``clean`` or ``joint``, see `forward`.
        channels_last: True: convert images to channels-last memory order.
    """

    def __init__(
        self,
        trunk: nn.Module,
        features: int,
        classes: int,
        *,
        rotation: bool = False,
        others: int = 0,
        batchnorm: str = "clean",
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.cls = nn.Linear(features, classes)
        self.rot: nn.Linear | None = nn.Linear(features, ROTATIONS) if rotation else None
        self.other: nn.Linear | None = nn.Linear(features, others) if others else None
        self.batchnorm = batchnorm
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._normalisations = [layer for layer in trunk.modules() if isinstance(layer, _BATCH_NORMS)]

    def forward(self, images: Tensor | Mapping[str, Tensor]) -> Tensor | dict[str, Tensor]:
        """Return class logits (B, classes) for a tensor, or logits by name for named inputs.

        The named input ``rotation`` goes to the rotation head, ``coarse`` and ``fine`` to the head of the other labels,
        and every other one to the class head. ``coarse`` and ``fine`` are the images of ``classification`` and share
        its features if it is an input too. In training mode, `batchnorm` decides how BatchNorm treats the inputs.
        ``clean`` normalises each by its own statistics, and only ``classification`` updates the running averages, which
        then describe the images that evaluation sees. ``joint`` concatenates the inputs, so that statistics and running
        averages describe the mixture.

        Args:
            images: (B, C, H, W), or name -> such a tensor.
        """
        if isinstance(images, Tensor):
            logits: Tensor = self.cls(self._features(images))
            return logits
        shared = [name for name in images if name in LABELS and "classification" in images]
        own = {name: each for name, each in images.items() if name not in shared}
        if self.batchnorm == "joint":
            parts = self._features(torch.cat(list(own.values()))).split([len(each) for each in own.values()])
            features = dict(zip(own, parts, strict=True))
        else:
            features = {name: self._separate(name, each) for name, each in own.items()}
        return {name: self._head(name)(features["classification" if name in shared else name]) for name in images}

    def _features(self, images: Tensor) -> Tensor:
        features: Tensor = self.trunk(images.contiguous(memory_format=self.memory_format))
        return features

    def _separate(self, name: str, images: Tensor) -> Tensor:
        if name == "classification":
            return self._features(images)
        with self._still_averages():
            return self._features(images)

    def _head(self, name: str) -> nn.Linear:
        if name in LABELS:
            if self.other is None:
                raise RuntimeError("this model was built without a head for other labels")
            return self.other
        if name != "rotation":
            return self.cls
        if self.rot is None:
            raise RuntimeError("this model was built without a rotation head")
        return self.rot

    @contextmanager
    def _still_averages(self) -> Iterator[None]:
        """Stop BatchNorm in training mode from updating its running averages within this context."""
        moving = [layer for layer in self._normalisations if layer.training and layer.track_running_stats]
        for layer in moving:
            layer.track_running_stats = False
        try:
            yield
        finally:
            for layer in moving:
                layer.track_running_stats = True
