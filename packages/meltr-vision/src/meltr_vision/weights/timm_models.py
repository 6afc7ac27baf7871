"""Models of timm: their names, their trunks with published or random weights, and how their images are normalised.

Only a run with such a model imports timm, which takes seconds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from meltr.errors import UserError, did_you_mean


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


def published_normalisation(name: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return the channel means and deviations, in 0..1, that a model was pretrained with; None if timm has none.

    Raises:
        UserError: If the name is unknown.
    """
    import timm

    card = timm.get_pretrained_cfg(known_timm_name(name))
    return None if card is None else (card.mean, card.std)


def timm_trunk(name: str, *, pretrained: bool, channels: int, image_size: int) -> tuple[nn.Module, int]:
    """Return a timm model without its classifier, and F, the width of its features.

    F is measured with one blank image, so that an unsuitable model is rejected before training.

    Args:
        name: timm's name of the model, with or without the tag of its weights.
        pretrained: Load the published weights.
        channels: Channels of the images.
        image_size: Side of the images in pixels, passed to models that are built for one size.

    Raises:
        UserError: If the name is unknown, the weights cannot be downloaded, or the model does not accept such images.
    """
    trunk = _created(name, pretrained=pretrained, channels=channels, image_size=image_size)
    return trunk, _feature_width(trunk, name, channels=channels, image_size=image_size)


def _created(name: str, *, pretrained: bool, channels: int, image_size: int) -> nn.Module:
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


def _feature_width(trunk: nn.Module, name: str, *, channels: int, image_size: int) -> int:
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


def _unsuitable(name: str, image_size: int, error: Exception) -> UserError:
    return UserError(
        f"timm model {name!r} does not accept images of {image_size}x{image_size} pixels: {error}",
        "Use the size of the model, e.g. --set options.image_size=224, or choose another model.",
    )
