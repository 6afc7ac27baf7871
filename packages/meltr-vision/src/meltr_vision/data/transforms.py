"""How the images of a run are resized, normalised and augmented."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from meltr.devices import constant
from meltr.errors import UserError
from meltr_vision.data.images import ImageSet
from meltr_vision.options import VisionOptions
from meltr_vision.weights.timm_models import published_normalisation

NORMALISATION = {
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "digits": ((0.3053,), (0.3761,)),
    "image_folder": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Data set -> channel means and standard deviations of its training images in 0..1 (ImageNet's for folders)."""


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


def pipeline_of(dataset: str, options: VisionOptions, train: ImageSet) -> Pipeline:
    """Return the pipeline of a run: what the options say, or else the defaults of the data set.

    Args:
        dataset: Name of the data set.
        options: The backbone's settings.
        train: The training images, for their side and channels.

    Raises:
        UserError: If mean and std do not fit the channels, or the padding does not fit the side.
    """
    _, channels, size, _ = train.images.shape
    mean, std = _normalisation(dataset, options)
    if channels not in (len(mean), len(std)) or len(mean) != len(std):
        raise UserError(
            f"options.mean has {len(mean)} values and options.std {len(std)}, but the images have {channels} channels.",
            f"Give {channels} values each, e.g. --set 'mean=[{', '.join(['0.5'] * channels)}]'.",
        )
    small = {"digits": 1}.get(dataset, size // 8)
    padding = small if options.augment_padding is None else options.augment_padding
    if padding >= size:
        raise UserError(
            f"options.augment_padding={padding} must be smaller than the image side of {size} pixels.",
            f"Choose 0 to {size - 1}; a usual value is {small}.",
        )
    flip = dataset != "digits" if options.flip is None else options.flip
    return Pipeline(
        mean=tuple(mean),
        std=tuple(std),
        image_size=options.image_size or size,
        flip=flip,
        padding=padding,
        padding_mode=options.padding_mode,
    )


def _normalisation(dataset: str, options: VisionOptions) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return means and standard deviations: the given ones, else those of the pretrained weights or of the data set."""
    mean, std = NORMALISATION[dataset]
    if options.pretrained and options.timm_name is not None and len(mean) == 3:
        mean, std = published_normalisation(options.timm_name) or (mean, std)
    return options.mean or mean, options.std or std
