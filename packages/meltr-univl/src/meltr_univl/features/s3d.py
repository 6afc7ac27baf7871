"""S3D-G trained on HowTo100M, up to its features: it maps a clip to a vector of dimension 1,024.

The weights are those of Miech et al., End-to-End Learning of Visual Representations from Uncurated Instructional
Videos, CVPR 2020. The network is that of Xie et al., Rethinking Spatiotemporal Feature Learning, ECCV 2018. Keys and
details follow the public repository antoine77340/S3D_HowTo100M (``s3d_howto100m.pth``).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 1024
"""Channels of the last block's output."""

BLOCKS = {
    "mixed_3b": (64, 96, 128, 16, 32, 32),
    "mixed_3c": (128, 128, 192, 32, 96, 64),
    "mixed_4b": (192, 96, 208, 16, 48, 64),
    "mixed_4c": (160, 112, 224, 24, 64, 64),
    "mixed_4d": (128, 128, 256, 24, 64, 64),
    "mixed_4e": (112, 144, 288, 32, 64, 64),
    "mixed_4f": (256, 160, 320, 32, 128, 128),
    "mixed_5b": (256, 160, 320, 32, 128, 128),
    "mixed_5c": (384, 192, 384, 48, 128, 128),
}
"""Inception block -> channels of its branches: 1x1x1; twice 1x1x1 then 3x3x3; pooling then 1x1x1."""

POOLED_BEFORE = {"mixed_4b": (3, 2), "mixed_5b": (2, 2)}
"""Block -> kernel and stride of the pooling before it, on all three axes."""


class Convolution(nn.Module):
    """Convolution, batch norm, ReLU. A separable convolution does this first in space and then in time.

    Args:
        channels: Input and output channels.
        kernel: Size of the kernel on the three axes.
        padding: Padding on the three axes.
        separable: True: convolve with (1, k, k), then with (k, 1, 1).
    """

    def __init__(
        self,
        channels: tuple[int, int],
        kernel: tuple[int, int, int] = (1, 1, 1),
        *,
        padding: tuple[int, int, int] = (0, 0, 0),
        separable: bool = False,
    ) -> None:
        super().__init__()
        inner, outer = channels
        space, time = ((1, *kernel[1:]), (0, *padding[1:])), ((kernel[0], 1, 1), (padding[0], 0, 0))
        first = space if separable else (kernel, padding)
        self.conv1 = nn.Conv3d(inner, outer, first[0], padding=first[1], bias=False)
        self.bn1 = nn.BatchNorm3d(outer)
        self.conv2: nn.Conv3d | None = None
        if separable:
            self.conv2 = nn.Conv3d(outer, outer, time[0], padding=time[1], bias=False)
            self.bn2 = nn.BatchNorm3d(outer)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, T, H, W) to (N, C', T', H', W')."""
        x = F.relu(self.bn1(self.conv1(x)))
        return x if self.conv2 is None else F.relu(self.bn2(self.conv2(x)))


class Gate(nn.Module):
    """Weight channels by the sigmoid of a linear map of their means.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, T, H, W) to the same shape."""
        weights: Tensor = self.fc(x.mean((2, 3, 4))).sigmoid()
        return weights[:, :, None, None, None] * x


class Inception(nn.Module):
    """Four gated parallel branches, concatenated.

    Args:
        channels: C, input channels.
        widths: Channels of the branches, as in `BLOCKS`.
    """

    def __init__(self, channels: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        whole, first, first_out, second, second_out, pooled = widths
        cube, around = (3, 3, 3), (1, 1, 1)
        self.conv_b0 = Convolution((channels, whole))
        self.conv_b1_a = Convolution((channels, first))
        self.conv_b1_b = Convolution((first, first_out), cube, padding=around, separable=True)
        self.conv_b2_a = Convolution((channels, second))
        self.conv_b2_b = Convolution((second, second_out), cube, padding=around, separable=True)
        self.conv_b3_b = Convolution((channels, pooled))
        self.gating_b0, self.gating_b1 = Gate(whole), Gate(first_out)
        self.gating_b2, self.gating_b3 = Gate(second_out), Gate(pooled)
        self.channels = whole + first_out + second_out + pooled

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, T, H, W) to the concatenated branches, (N, `channels`, T, H, W)."""
        branches = (
            self.gating_b0(self.conv_b0(x)),
            self.gating_b1(self.conv_b1_b(self.conv_b1_a(x))),
            self.gating_b2(self.conv_b2_b(self.conv_b2_a(x))),
            self.gating_b3(self.conv_b3_b(F.max_pool3d(x, 3, stride=1, padding=1))),
        )
        return torch.cat(branches, 1)


class HowTo100M(nn.Module):
    """S3D-G without its head. The input is first folded by two on all axes ("space to depth")."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = Convolution((24, 64), (2, 4, 4), padding=(1, 2, 2))
        self.conv_2b = Convolution((64, 64))
        self.conv_2c = Convolution((64, 192), (3, 3, 3), padding=(1, 1, 1), separable=True)
        self.gating = Gate(192)
        channels = 192
        for name, widths in BLOCKS.items():
            block = Inception(channels, widths)
            self.add_module(name, block)
            channels = block.channels

    def forward(self, clips: Tensor) -> Tensor:
        """Return the mean of the last block's output, (N, `WIDTH`).

        Args:
            clips: RGB in [0, 1], (N, 3, T, H, W), each of T, H, W even.
        """
        x = self.conv1(_folded(clips))[:, :, 1:, 1:, 1:]
        x = self.conv_2b(_pooled(x, (1, 3, 3), (1, 2, 2)))
        x = _pooled(self.gating(self.conv_2c(x)), (1, 3, 3), (1, 2, 2))
        for name in BLOCKS:
            if name in POOLED_BEFORE:
                kernel, stride = POOLED_BEFORE[name]
                x = _pooled(x, (kernel,) * 3, (stride,) * 3)
            x = self.get_submodule(name)(x)
        means: Tensor = x.mean((2, 3, 4))
        return means


def _folded(clips: Tensor) -> Tensor:
    """Return (N, 8 C, T / 2, H / 2, W / 2). The offset in (T, H, W) is the slow part of the channel index."""
    n, c, t, h, w = clips.shape
    parts = clips.reshape(n, c, t // 2, 2, h // 2, 2, w // 2, 2)
    return parts.permute(0, 3, 5, 7, 1, 2, 4, 6).reshape(n, 8 * c, t // 2, h // 2, w // 2)


def _pooled(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Apply max pooling with TensorFlow's SAME padding by zeros: half of kernel - stride before, the rest after."""
    padding: list[int] = []
    for length, step in zip(reversed(kernel), reversed(stride), strict=True):
        padding += [(length - step) // 2, length - step - (length - step) // 2]
    return F.max_pool3d(F.pad(x, padding), kernel, stride, ceil_mode=True)
