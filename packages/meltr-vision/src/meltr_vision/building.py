"""From options to a model: the CIFAR family, timm's models, and weights from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from meltr.errors import UserError, did_you_mean
from meltr.weights import FileKind, LoadReport, compare, copy_into, read_weights
from meltr_vision.model import CifarTrunk, Classifier
from meltr_vision.options import CIFAR_DEPTHS, VisionOptions

_CHOOSE = "Set options.model (and options.shortcut) to the model that the file was made for."
_FILE = FileKind("a file of weights of this model", _CHOOSE, _CHOOSE)


def build_classifier(
    options: VisionOptions,
    *,
    classes: int,
    channels: int,
    image_size: int,
    rotation: bool,
    notes: list[str] | None = None,
) -> Classifier:
    """Return the model that `options` describe.

    Args:
        options: The backbone's settings.
        classes: Classes of the data set.
        channels: Channels of its images.
        image_size: Side of the images in pixels.
        rotation: Add the rotation head.
        notes: What was loaded is added to it.

    Raises:
        UserError: If the model is unknown, cannot take such images, or its weights cannot be had.
    """
    trunk: nn.Module
    if options.timm_name is None:
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
        batchnorm=options.batchnorm,
        channels_last=options.channels_last,
    )
    return model.to(memory_format=torch.channels_last) if options.channels_last else model


def known_timm_name(name: str) -> str:
    """Return `name` if timm has it; UserError with the nearest names otherwise."""
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
        image_size: Side of the images in pixels; given to models that are built for one size.

    Raises:
        UserError: If the name is unknown or the weights cannot be fetched.
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
    except Exception as error:  # timm and its download library raise many kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"The published weights of timm model {name!r} cannot be had: {type(error).__name__}: {reason}",
            "Without a network: fetch them on another machine and give the file with --set options.pretrained=false "
            "--set options.weights_file=FILE, or train from scratch with --set options.pretrained=false.",
        ) from error


def _unsuitable(name: str, image_size: int, error: Exception) -> UserError:
    return UserError(
        f"timm model {name!r} cannot take images of {image_size}x{image_size} pixels: {error}",
        "Give the size it was made for, e.g. --set options.image_size=224, or choose another model.",
    )


def _feature_width(trunk: nn.Module, name: str, *, channels: int, image_size: int) -> int:
    """Return F, found with one empty image, so that an unsuitable model is refused before training."""
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
        raise UserError(f"timm model {name!r} gives {shape}, not one feature vector an image.", "Choose another model.")
    return int(features.shape[1])


def load_weights(trunk: nn.Module, path: Path) -> LoadReport:
    """Load the trunk's weights from a file; entries for other parts (a classifier) are not used.

    Args:
        trunk: The model without heads.
        path: A safetensors file or a state dict saved by torch (read with ``weights_only=True``). A ``trunk.`` prefix,
            as in the checkpoints of a run, is taken off.

    Raises:
        UserError: If it cannot be read, or does not fit.
    """
    state = read_weights(path)
    if any(key.startswith("trunk.") for key in state):
        state = {key.removeprefix("trunk."): value for key, value in state.items() if key.startswith("trunk.")}
    report = compare(trunk, state, source=path)
    _FILE.check_missing(report, state)
    _FILE.check_shapes(report)
    return copy_into(trunk, state, report)
