"""Build a model from options: the CIFAR family, timm's models, and weights from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from meltr.errors import UserError, did_you_mean
from meltr.weights import FileKind, LoadReport, compare, copy_into, read_weights
from meltr_vision.model import CifarTrunk, Classifier
from meltr_vision.options import CIFAR_DEPTHS, VGG, VisionOptions
from meltr_vision.vgg import SMALLEST, VGG16

_CHOOSE = "Set options.model (and options.shortcut) to the model that the file was made for."
_FILE = FileKind("a file of weights of this model", _CHOOSE, _CHOOSE)


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
    trunk: nn.Module
    if options.model == VGG:
        if image_size < SMALLEST:
            raise UserError(
                f"{VGG} needs images of at least {SMALLEST} pixels, but they have {image_size}.",
                f"Choose another model, or --set options.image_size={SMALLEST}.",
            )
        trunk, features = VGG16(channels=channels), VGG16.features
    elif options.timm_name is None:
        trunk = CifarTrunk(CIFAR_DEPTHS[options.model], shortcut=options.shortcut, channels=channels)
        features = CifarTrunk.features
    else:
        trunk = timm_trunk(options.timm_name, options.pretrained, channels=channels, image_size=image_size)
        features = _feature_width(trunk, options.timm_name, channels=channels, image_size=image_size)
    if options.weights_file is not None:
        report = load_weights(trunk, options.weights_file)
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


def known_timm_name(name: str) -> str:
    """Return `name` if timm has it; otherwise raise a UserError with the nearest names."""
    import timm

    architecture, _, tag = name.partition(".")
    tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{architecture}.*")]
    if timm.is_model(architecture) and (not tag or tag in tags):
        return name
    if timm.is_model(architecture):
        raise UserError(f"timm has {architecture!r}, but not with the tag {tag!r}.", did_you_mean(tag, tags))
    near = timm.list_models(f"*{architecture}*") or timm.list_models()
    guess = did_you_mean(architecture, near)
    if len(near) > 20:
        guess = guess.partition(" Valid choices")[0] if "Did you mean" in guess else ""
    raise UserError(
        f"timm has no model {name!r}.", f"{guess} All names: python -c 'import timm; print(timm.list_models())'".strip()
    )


def timm_trunk(name: str, pretrained: bool, *, channels: int, image_size: int) -> nn.Module:
    """Return a timm model without its classifier.

    Args:
        name: timm's name of the model, with or without the tag of its weights.
        pretrained: Load the published weights.
        channels: Channels of the images.
        image_size: Side of the images in pixels, passed to models that are built for one size.

    Raises:
        UserError: If the name is unknown or the weights cannot be downloaded.
    """
    import timm

    known_timm_name(name)
    settings: dict[str, Any] = {"num_classes": 0, "in_chans": channels}
    card = timm.get_pretrained_cfg(name)
    if card is not None and card.fixed_input_size:
        settings["img_size"] = image_size
    if not pretrained:
        try:
            return timm.create_model(name, **settings)
        except (RuntimeError, AssertionError, ValueError) as error:
            raise _unsuitable(name, image_size, error) from error
    try:
        return timm.create_model(name, pretrained=True, **settings)
    except Exception as error:  # timm and its download library raise many kinds of errors
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"The published weights of timm model {name!r} cannot be loaded: {type(error).__name__}: {reason}",
            "Without a network: download them on another machine and use the file with --set options.pretrained=false "
            "--set options.weights_file=FILE, or train from scratch with --set options.pretrained=false.",
        ) from error


def _unsuitable(name: str, image_size: int, error: Exception) -> UserError:
    return UserError(
        f"timm model {name!r} does not accept images of {image_size}x{image_size} pixels: {error}",
        "Use the size of the model, e.g. --set options.image_size=224, or choose another model.",
    )


def _feature_width(trunk: nn.Module, name: str, *, channels: int, image_size: int) -> int:
    """Return F, measured with one blank image, so that an unsuitable model is rejected before training."""
    trunk.eval()
    try:
        with torch.no_grad():
            features = trunk(torch.zeros(1, channels, image_size, image_size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise _unsuitable(name, image_size, error) from error
    finally:
        trunk.train()
    if not isinstance(features, Tensor) or features.dim() != 2:
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise UserError(
            f"timm model {name!r} returns {shape}, not one feature vector per image.", "Choose another model."
        )
    return int(features.shape[1])


def load_weights(trunk: nn.Module, path: Path) -> LoadReport:
    """Load the trunk's weights from a file; entries for other parts (a classifier) are not used.

    Args:
        trunk: The model without heads.
        path: A safetensors file or a state dict saved by torch (read with ``weights_only=True``). A ``trunk.`` prefix,
            as in the checkpoints of a run, is removed.

    Raises:
        UserError: If the file cannot be read, or does not fit the model.
    """
    state = read_weights(path)
    if any(key.startswith("trunk.") for key in state):
        state = {key.removeprefix("trunk."): value for key, value in state.items() if key.startswith("trunk.")}
    report = compare(trunk, state, source=path)
    _FILE.check_missing(report, state)
    _FILE.check_shapes(report)
    return copy_into(trunk, state, report)
