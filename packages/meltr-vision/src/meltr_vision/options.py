"""Settings of the vision backbone (``options.*``). This module does not import torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from meltr.errors import did_you_mean
from meltr.specs import Info

CIFAR_BLOCKS = {"resnet20": 3, "resnet32": 5, "resnet44": 7, "resnet56": 9, "resnet110": 18}
"""Name of a CIFAR ResNet -> n, basic blocks per stage; its depth is 6n + 2."""

VGG = "vgg16_bn"
"""VGG-16 with BatchNorm, in its form for CIFAR."""

TIMM_PREFIX = "timm/"


class VisionOptions(Info):
    """Settings of the vision backbone.

    Args:
        model: ``resnet20``, ``resnet32``, ``resnet44``, ``resnet56``, ``resnet110`` (the CIFAR family of He et al.
            2015), ``vgg16_bn`` (VGG-16 with BatchNorm and one linear head, for images of 32 pixels or more), or
            ``timm/<name>`` for any timm model with pooled features.
        shortcut: Option A (parameter-free) or B (1x1 convolution) where a CIFAR ResNet changes shape.
        pretrained: Start a timm model from its published weights (downloaded by timm on first use).
        weights_file: Start from this file instead: safetensors, or a state dict saved by torch; heads are skipped.
        classes: Which labels of CIFAR-100 are the primary task: ``fine`` (100 classes) or ``coarse`` (20 superclasses).
            The other ones are an auxiliary loss: ``--set losses=classification,coarse`` or
            ``losses=classification,fine``.
        mixup_alpha: alpha of lambda ~ Beta(alpha, alpha), one lambda per batch.
        rotation: ``one``: one random quarter turn per image (1x cost); ``all``: all four copies (4x cost).
        batchnorm: ``clean``: each loss has its own pass, and only the clean one updates the running averages;
            ``joint``: one concatenated pass with shared batch statistics.
        flip: Random horizontal flip in training; None: the default of the data set (off for digits).
        augment_padding: Pixels of padding before the random crop back to size; 0: no crop; None: the default of the
            data set (4 for CIFAR, 1 for digits, an eighth of the side for folders).
        padding_mode: Content of the padding: ``zeros`` (black) or ``reflect``.
        mean: Channel means in 0..1 to subtract; None: those of the data set, or of the pretrained weights.
        std: Channel deviations in 0..1 to divide by; None: those of the data set, or of the pretrained weights.
        image_size: Side in pixels that the model sees; None: the size in the data set (224 for folders).
        channels_last: Keep images and weights in channels-last memory order (faster on recent GPUs with bf16).
        drop_last: Skip the last, smaller training batch of an epoch if there is more than one batch.
        eval_batch_size: Images per batch in evaluation.
        per_class: Report the accuracy of every class.
        save_predictions: Write label and prediction of every evaluated image.
        trunk_lr_scale: Learning rate of the trunk relative to the heads (below 1 for fine-tuning).
        decay_all: Also apply weight decay to biases and normalisation weights, as in the CIFAR recipes.
    """

    model: str = "resnet32"
    shortcut: Literal["A", "B"] = "A"
    pretrained: bool = False
    weights_file: Path | None = None
    classes: Literal["fine", "coarse"] = "fine"
    mixup_alpha: float = Field(1.0, gt=0)
    rotation: Literal["one", "all"] = "one"
    batchnorm: Literal["clean", "joint"] = "clean"
    flip: bool | None = None
    augment_padding: int | None = Field(None, ge=0)
    padding_mode: Literal["zeros", "reflect"] = "zeros"
    mean: tuple[float, ...] | None = Field(None, min_length=1)
    std: tuple[float, ...] | None = Field(None, min_length=1)
    image_size: int | None = Field(None, ge=8)
    channels_last: bool = False
    drop_last: bool = True
    eval_batch_size: int = Field(1000, ge=1)
    per_class: bool = False
    save_predictions: bool = False
    trunk_lr_scale: float = Field(1.0, ge=0)
    decay_all: bool = True

    @field_validator("model")
    @classmethod
    def _known_model(cls, value: str) -> str:
        if value not in (*CIFAR_BLOCKS, VGG) and not (value.startswith(TIMM_PREFIX) and len(value) > len(TIMM_PREFIX)):
            hint = did_you_mean(value, [*CIFAR_BLOCKS, VGG, f"{TIMM_PREFIX}<name>"])
            raise ValueError(f"unknown model {value!r}. {hint}")
        return value

    @field_validator("std")
    @classmethod
    def _positive_std(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if value is not None and min(value) <= 0:
            raise ValueError(f"std={value}: all values must be positive")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> VisionOptions:
        if self.pretrained and self.timm_name is None:
            raise ValueError(
                f"pretrained=true, but {self.model!r} has no published weights: use timm/<name>, or weights_file"
            )
        if self.pretrained and self.weights_file is not None:
            raise ValueError("pretrained=true and weights_file cannot be combined: give one of them")
        return self

    @property
    def timm_name(self) -> str | None:
        """Name of the timm model; None for the models of this package."""
        return self.model.removeprefix(TIMM_PREFIX) if self.model.startswith(TIMM_PREFIX) else None
