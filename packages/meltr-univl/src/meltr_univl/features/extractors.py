"""Extractors that turn clips into features: S3D trained on HowTo100M, torchvision's S3D, or a grid without weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from meltr.devices import constant
from meltr.errors import UserError, did_you_mean
from meltr.video.frames.pictures import Picture, resize
from meltr.video.frames.source import Frames
from meltr.weights import read_weights
from meltr_univl.features.grid import Grid
from meltr_univl.features.reading import PUBLISHED, Features
from meltr_univl.features.s3d import WIDTH, HowTo100M

NAMES = (PUBLISHED, "s3d", "grid")
"""The extractors; ``auto`` chooses the one that the weights belong to."""

TORCHVISION_FILE = "s3d-d76dad2f.pth"
"""torchvision's file of weights (Kinetics-400), searched for in the cache of torch.hub."""

MARKS = {PUBLISHED: "mixed_3b.conv_b0.conv1.weight", "s3d": "features.0.0.0.weight"}
"""A key that identifies a file of weights."""

MEAN, DEVIATION = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)
"""Mean and standard deviation of the pixels that torchvision's network was trained with."""


class Extractor(Protocol):
    """An extractor, which maps clips to vectors.

    Attributes:
        name: One of `NAMES`.
        width: D, dimension of a vector.
        rate: Vectors per second.
        frames: Frames per clip.
        weights: Digest of the weights; None: it has no weights.
    """

    name: str
    width: int
    rate: float
    frames: int
    weights: str | None

    def prepare(self, picture: Picture) -> Picture:
        """Return a decoded picture in the size that the extractor sees."""
        ...

    def vectors(self, clips: Frames) -> Features:
        """Return (N, D) for clips (N, frames, H, W, 3)."""
        ...


class Network:
    """An S3D on a device.

    Args:
        name: ``s3d-howto100m`` or ``s3d``.
        state: The weights, with the keys of their official file.
        device: Device of the network.

    Raises:
        UserError: If weights are missing or have another shape.
    """

    width = WIDTH
    rate = 1.0
    frames = 16

    def __init__(self, name: str, state: Mapping[str, Tensor], *, device: torch.device | str = "cpu") -> None:
        self.name, self._device = name, device
        module = HowTo100M() if name == PUBLISHED else _torchvision()
        self.weights: str | None = _load(module, state, name)
        self._module = module.to(device).eval()
        self._short = 224 if name == PUBLISHED else 256

    def prepare(self, picture: Picture) -> Picture:
        """Return the middle 224 x 224 of a picture whose short side is 224 (HowTo100M) or 256 (torchvision)."""
        height, width = picture.shape[:2]
        scale = self._short / min(height, width)
        picture = resize(picture, round(height * scale), round(width * scale))
        top, left = (picture.shape[0] - 224) // 2, (picture.shape[1] - 224) // 2
        return picture[top : top + 224, left : left + 224]

    @torch.inference_mode()
    def vectors(self, clips: Frames) -> Features:
        """Return unit vectors (N, 1024) for clips (N, 16, 224, 224, 3).

        UniVL's published features, made with the public repository ArrowLuo/VideoFeatureExtractor, have unit length
        too. The model's normalisation removes the length again.
        """
        pixels = torch.from_numpy(clips).to(self._device).permute(0, 4, 1, 2, 3).float() / 255
        if self.name != PUBLISHED:
            mean, deviation = (
                constant(tuple(each), pixels.device, pixels.dtype)[:, None, None, None] for each in (MEAN, DEVIATION)
            )
            pixels = (pixels - mean) / deviation
        features: Features = F.normalize(self._module(pixels), dim=1).cpu().numpy()
        return features


def open_extractor(name: str = "auto", weights: Path | None = None, *, device: torch.device | str = "cpu") -> Extractor:
    """Open an extractor.

    Args:
        name: One of `NAMES`, or ``auto``: the one that `weights` belong to, or torchvision's without `weights`.
        weights: File of the weights; None: torchvision's from the cache of torch.hub. Nothing is downloaded.
        device: Device of the extractor.

    Raises:
        UserError: If the extractor is unknown, or if its weights are missing or belong to something else.
    """
    if name not in ("auto", *NAMES):
        raise UserError(f"there is no extractor {name!r}", did_you_mean(name, ("auto", *NAMES)))
    if name == "grid":
        if weights is not None:
            raise UserError("the extractor grid has no weights, but --weights was given", "Remove --weights.")
        return Grid()
    file = weights or _cached(name)
    state = read_weights(file)
    fitting = next((each for each, mark in MARKS.items() if mark in state), None)
    if fitting is None or name not in ("auto", fitting):
        wanted = "an S3D" if name == "auto" else name
        raise UserError(
            f"{file} does not hold weights of {wanted}: it has {', '.join(list(state)[:3])}, ...",
            "Give s3d_howto100m.pth of the public repository antoine77340/S3D_HowTo100M, or torchvision's "
            f"{TORCHVISION_FILE}.",
        )
    return Network(fitting, state, device=device)


def _cached(name: str) -> Path:
    file = Path(torch.hub.get_dir()) / "checkpoints" / TORCHVISION_FILE
    if name != PUBLISHED and file.is_file():
        return file
    raise UserError(
        f"the extractor {name} needs weights, and --weights was not given",
        "Give --weights s3d_howto100m.pth (of the public repository antoine77340/S3D_HowTo100M, the extractor that "
        f"UniVL was trained with), or torchvision's {TORCHVISION_FILE}, or use --extractor grid, which needs none.",
    )


class _Pooled(nn.Module):
    """The spatial and temporal mean of a network's output."""

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features

    def forward(self, clips: Tensor) -> Tensor:
        features: Tensor = self.features(clips)
        return features.mean((2, 3, 4))


def _torchvision() -> nn.Module:
    from torchvision.models.video import s3d

    return _Pooled(s3d(weights=None).features)


def _load(module: nn.Module, state: Mapping[str, Tensor], name: str) -> str:
    """Load the weights into the module, and return their digest."""
    wanted = module.state_dict()
    needed = [key for key in wanted if not key.endswith("num_batches_tracked")]
    wrong = [key for key in needed if key not in state or state[key].shape != wanted[key].shape]
    if wrong:
        raise UserError(
            f"{len(wrong):,} of {len(needed):,} weights of {name} are missing or have another shape "
            f"(first: {wrong[0]}).",
            "Get the file again from its official source.",
        )
    module.load_state_dict({key: state[key] for key in needed}, strict=False)
    digest = hashlib.sha256()
    for key in sorted(needed):
        digest.update(f"{key} {tuple(state[key].shape)}".encode())
        digest.update(state[key].detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
