"""The ResNets for CIFAR of He et al. 2015, section 4.2, without their classifier."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from meltr_vision.model.initialisation import he_normal


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
    """F, the width of the features."""

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
