"""VGG-16 with BatchNorm in its form for CIFAR (Simonyan and Zisserman 2015, configuration D)."""

from __future__ import annotations

from torch import Tensor, nn

from meltr_vision.model.initialisation import he_normal

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and convolutions of every stage; each ends with a 2x2 maximum."""

SMALLEST = 32
"""Smallest side of an image in pixels: five stages halve it to one."""


class VGG16(nn.Module):
    """The thirteen convolutions of VGG-16, each with BatchNorm and ReLU; the three fully connected layers are dropped.

    The form that CIFAR results are reported for: one linear head on the 512 features of a 32x32 image. Larger images
    are averaged over the places that are left. The parameters are those of torchvision's ``vgg16_bn().features``.

    Args:
        channels: Channels of the images.
    """

    features = 512
    """F, the width of the features."""

    def __init__(self, *, channels: int = 3) -> None:
        super().__init__()
        self.stages = nn.Sequential()
        for width, count in STAGES:
            stage = nn.Sequential()
            for _ in range(count):
                stage.append(nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()))
                channels = width
            stage.append(nn.MaxPool2d(2))
            self.stages.append(stage)
        he_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, C, H, W), at least 32 pixels high and wide, to features (B, 512)."""
        features: Tensor = self.stages(x).mean(dim=(2, 3))
        return features
