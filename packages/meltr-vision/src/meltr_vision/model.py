"""The ResNets for CIFAR of He et al. 2015, section 4.2, and the classifier with its heads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROTATIONS = 4
"""Quarter turns that the rotation head distinguishes."""

LABELS = ("coarse", "fine")
"""Losses on the other labels of CIFAR-100; they see the images of the primary loss."""

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class ShortcutA(nn.Module):
    """Option A: subsample the pixels by `stride` and pad with zero channels, half before and half after.

    Args:
        channels_in: Input channels.
        channels_out: Output channels; the difference must be even.
        stride: Stride in pixels.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.missing = (channels_out - channels_in) // 2
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', ceil(H / stride), ceil(W / stride))."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.missing, self.missing))


class BasicBlock(nn.Module):
    """conv3x3 - BN - ReLU - conv3x3 - BN, plus shortcut, ReLU (He et al. 2015, figure 2).

    Args:
        channels_in: Input channels.
        channels_out: Output channels.
        stride: Stride of the first convolution.
        shortcut: ``A`` or ``B``, used where the shape changes.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module
        if stride == 1 and channels_in == channels_out:
            self.shortcut = nn.Identity()
        elif shortcut == "A":
            self.shortcut = ShortcutA(channels_in, channels_out, stride)
        else:
            projection = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class CifarTrunk(nn.Module):
    """ResNet of depth 6n + 2 up to the pooled features. For n = 5 it takes 69 M multiply-adds per 32x32 image.

    It has a stem of 16 channels without pooling, three stages of n blocks with 16, 32 and 64 channels, and global
    average pooling. The second and third stage start with stride 2.

    Args:
        blocks: n, blocks per stage (5 for ResNet-32).
        shortcut: ``A`` or ``B``.
        channels: Channels of the images.
    """

    features = 64

    def __init__(self, blocks: int, *, shortcut: str = "A", channels: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.stages = nn.Sequential()
        width = 16
        for stage, out in enumerate((16, 32, 64)):
            layers = []
            for index in range(blocks):
                layers.append(BasicBlock(width, out, 2 if stage and not index else 1, shortcut))
                width = out
            self.stages.append(nn.Sequential(*layers))
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W) to features (B, 64)."""
        x = F.relu(self.bn(self.conv(x)))
        features: Tensor = self.stages(x).mean(dim=(2, 3))
        return features


def he_normal(module: nn.Module) -> None:
    """Initialise convolutions as in He et al. 2015: weights N(0, 2 / fan_in). BatchNorm keeps weight 1 and bias 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")


class Classifier(nn.Module):
    """A trunk with a class head and an optional rotation head.

    All inputs of a step go through one call, so that torch.compile and DistributedDataParallel see one forward. The
    heads keep the initialisation of `torch.nn.Linear` (as in torchvision's ResNets), so the losses start near ln C and
    ln 4.

    Args:
        trunk: Maps images (B, C, H, W) to pooled features (B, F).
        features: F.
        classes: Number of classes.
        rotation: True: add the rotation head, F -> 4. Heads of auxiliary losses are built last, so the other weights do
            not depend on them.
        others: Classes of the head for the other labels of the images, F -> others; 0: no such head.
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
        self.rot: nn.Linear | None = None
        if rotation:
            self.rot = nn.Linear(features, ROTATIONS)
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
