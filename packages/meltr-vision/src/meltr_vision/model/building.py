"""The model of a run: the trunk that the options name, with the heads that its losses need.

A further trunk maps images to features (B, F). Its name is known to `options.py`, and `_trunk` builds it.
"""

from __future__ import annotations

import torch
from torch import nn

from meltr.errors import UserError
from meltr_vision.model.classifier import Classifier
from meltr_vision.model.resnet import CifarTrunk
from meltr_vision.model.vgg import SMALLEST, VGG16
from meltr_vision.options import CIFAR_BLOCKS, VGG, VisionOptions
from meltr_vision.weights.pretrained import load_pretrained
from meltr_vision.weights.timm_models import timm_trunk


def build_classifier(
    options: VisionOptions,
    *,
    classes: int,
    channels: int,
    image_size: int,
    rotation: bool,
    others: int = 0,
    notes: list[str] | None = None,
) -> Classifier:
    """Build the model that `options` describe.

    Args:
        options: Settings of the backbone.
        classes: Number of classes of the data set.
        channels: Channels of its images.
        image_size: Side of the images in pixels.
        rotation: Add the rotation head.
        others: Classes of the head for the other labels of the images; 0: no such head.
        notes: What was loaded is added to it.

    Raises:
        UserError: If the model is unknown, does not accept such images, or its weights are not available.
    """
    trunk, features = _trunk(options, channels=channels, image_size=image_size)
    if options.weights_file is not None:
        report = load_pretrained(trunk, options.weights_file)
        if notes is not None:
            notes.append(str(report))
    model = Classifier(
        trunk,
        features,
        classes,
        rotation=rotation,
        others=others,
        batchnorm=options.batchnorm,
        channels_last=options.channels_last,
    )
    return model.to(memory_format=torch.channels_last) if options.channels_last else model


def _trunk(options: VisionOptions, *, channels: int, image_size: int) -> tuple[nn.Module, int]:
    """Return the trunk that ``options.model`` names, and F, the width of its features."""
    if options.timm_name is not None:
        return timm_trunk(options.timm_name, pretrained=options.pretrained, channels=channels, image_size=image_size)
    if options.model == VGG:
        if image_size < SMALLEST:
            raise UserError(
                f"{VGG} needs images of at least {SMALLEST} pixels, but they have {image_size}.",
                f"Choose another model, or --set options.image_size={SMALLEST}.",
            )
        return VGG16(channels=channels), VGG16.features
    trunk = CifarTrunk(CIFAR_BLOCKS[options.model], shortcut=options.shortcut, channels=channels)
    return trunk, CifarTrunk.features
