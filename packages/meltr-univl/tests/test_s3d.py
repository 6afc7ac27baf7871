"""S3D of HowTo100M against plain convolutions and against torchvision's S3D, with which it shares its blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.video import s3d

from meltr.errors import UserError
from meltr_univl.features.extractors import Network, open_extractor
from meltr_univl.features.s3d import BLOCKS, HowTo100M, Inception, _folded, _pooled


@pytest.fixture(scope="module")
def network() -> HowTo100M:
    torch.manual_seed(0)
    return HowTo100M().eval()


def test_the_folded_convolution_is_one_with_twice_the_stride() -> None:
    clips = torch.rand(2, 3, 4, 8, 6)
    kernel = torch.rand(5, 3, 4, 8, 8)  # on pixels; folded, (2, 4, 4)
    parts = kernel.reshape(5, 3, 2, 2, 4, 2, 4, 2).permute(0, 3, 5, 7, 1, 2, 4, 6).reshape(5, 24, 2, 4, 4)
    folded = F.conv3d(_folded(clips), parts, padding=(1, 2, 2))
    direct = F.conv3d(clips, kernel, stride=2, padding=(2, 4, 4))
    torch.testing.assert_close(folded, direct)


@pytest.mark.parametrize(("kernel", "stride"), [((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2)), ((2, 2, 2), (2, 2, 2))])
def test_pooling_sees_a_window_for_every_stride(kernel: tuple[int, ...], stride: tuple[int, ...]) -> None:
    x = torch.rand(1, 2, 5, 6, 7)
    found = _pooled(x, kernel, stride)
    assert found.shape[2:] == tuple(-(-size // step) for size, step in zip(x.shape[2:], stride, strict=True))
    for place in np.ndindex(*found.shape[2:]):
        window: list[slice] = []
        for at, size, length, step in zip(place, x.shape[2:], kernel, stride, strict=True):
            start = at * step - (length - step) // 2
            window.append(slice(max(start, 0), min(start + length, size)))
        inside = x[(slice(None), slice(None), *window)].amax((2, 3, 4))
        torch.testing.assert_close(found[(slice(None), slice(None), *place)], inside)


def copy_convolution(ours: nn.Module, theirs: nn.Module) -> None:
    """Copy torchvision's weights, a convolution and a norm or two pairs of them."""
    pairs = [each for each in theirs.modules() if isinstance(each, nn.Conv3d | nn.BatchNorm3d)]
    names = ("conv1", "bn1", "conv2", "bn2")[: len(pairs)]
    for name, module in zip(names, pairs, strict=True):
        ours.get_submodule(name).load_state_dict(module.state_dict())
        if isinstance(module, nn.BatchNorm3d):
            ours.get_submodule(name).eps = module.eps  # type: ignore[assignment]


def test_a_block_with_open_gates_is_torchvisions() -> None:
    torch.manual_seed(1)
    theirs = s3d(weights=None).features[5].eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    ours = Inception(192, BLOCKS["mixed_3b"]).eval()
    copy_convolution(ours.conv_b0, theirs.branch0)
    for name, branch in (("conv_b1", theirs.branch1), ("conv_b2", theirs.branch2)):
        copy_convolution(ours.get_submodule(f"{name}_a"), branch[0])
        copy_convolution(ours.get_submodule(f"{name}_b"), branch[1])
    copy_convolution(ours.conv_b3_b, theirs.branch3[1])
    for number in range(4):
        gate = ours.get_submodule(f"gating_b{number}.fc")
        gate.weight.data.zero_()
        gate.bias.data.fill_(100.0)
    x = torch.randn(1, 192, 3, 5, 4)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x))
    ours.gating_b1.fc.bias.data.zero_()  # a gate of one half
    with torch.inference_mode():
        torch.testing.assert_close(ours(x)[:, 64:192], theirs(x)[:, 64:192] / 2)


def test_official_keys(network: HowTo100M) -> None:
    """Names and shapes as the public repository has them."""
    state = network.state_dict()
    for key, shape in {
        "conv1.conv1.weight": (64, 24, 2, 4, 4),
        "conv_2c.conv2.weight": (192, 192, 3, 1, 1),
        "conv_2c.bn2.running_var": (192,),
        "gating.fc.weight": (192, 192),
        "mixed_3b.conv_b1_b.conv1.weight": (128, 96, 1, 3, 3),
        "mixed_4e.gating_b2.fc.bias": (64,),
        "mixed_5c.conv_b3_b.conv1.weight": (128, 832, 1, 1, 1),
    }.items():
        assert tuple(state[key].shape) == shape, key


def official(network: HowTo100M) -> dict[str, Tensor]:
    """The state dict as a file has it, with the parts that features do not need."""
    extra = {"fc.weight": torch.zeros(512, 1024), "text_module.fc1.weight": torch.zeros(3, 3)}
    return network.state_dict() | extra


def test_a_file_is_known_by_its_keys(network: HowTo100M, tmp_path: Path) -> None:
    file = tmp_path / "s3d_howto100m.pth"
    torch.save({f"module.{key}": value for key, value in official(network).items()}, file)
    extractor = open_extractor("auto", file)
    assert (extractor.name, extractor.width, extractor.rate) == ("s3d-howto100m", 1024, 1.0)
    clips = np.random.default_rng(0).integers(0, 256, (2, 16, 224, 224, 3), dtype=np.uint8)
    found = extractor.vectors(clips[:, :, :64, :64])
    with torch.inference_mode():
        wanted = network(torch.from_numpy(clips[:, :, :64, :64]).permute(0, 4, 1, 2, 3) / 255)
    torch.testing.assert_close(torch.from_numpy(found), wanted / wanted.norm(dim=1, keepdim=True))
    again = open_extractor("s3d-howto100m", file)
    assert again.weights == extractor.weights
    changed = official(network) | {"conv1.conv1.weight": torch.zeros(64, 24, 2, 4, 4)}
    assert Network("s3d-howto100m", changed).weights != extractor.weights
    with pytest.raises(UserError, match="does not hold weights of s3d:"):
        open_extractor("s3d", file)


def test_torchvisions_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match="extractor auto needs weights") as error:
        open_extractor()
    assert "--extractor grid" in str(error.value)
    torch.manual_seed(0)
    theirs = s3d(weights=None).eval()
    (tmp_path / "checkpoints").mkdir()
    torch.save(theirs.state_dict(), tmp_path / "checkpoints" / "s3d-d76dad2f.pth")
    extractor = open_extractor()
    assert extractor.name == "s3d"
    clips = np.random.default_rng(0).integers(0, 256, (1, 16, 64, 64, 3), dtype=np.uint8)
    mean, deviation = torch.tensor([0.43216, 0.394666, 0.37645]), torch.tensor([0.22803, 0.22145, 0.216989])
    pixels = ((torch.from_numpy(clips) / 255 - mean) / deviation).permute(0, 4, 1, 2, 3)
    with torch.inference_mode():
        wanted = theirs.features(pixels).mean((2, 3, 4))
    torch.testing.assert_close(torch.from_numpy(extractor.vectors(clips)), wanted / wanted.norm(), atol=1e-6, rtol=1e-4)


def test_wrong_weights_are_named(network: HowTo100M, tmp_path: Path) -> None:
    short = {key: value for key, value in official(network).items() if not key.startswith("mixed_5c.conv_b0")}
    torch.save(short, tmp_path / "short.pth")
    with pytest.raises(UserError, match=r"5 of \d+ weights of s3d-howto100m are missing.*mixed_5c\.conv_b0"):
        open_extractor("auto", tmp_path / "short.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="does not hold weights of an S3D: it has a"):
        open_extractor("auto", tmp_path / "other.pth")
    with pytest.raises(UserError, match="no extractor 's3dd'"):
        open_extractor("s3dd")
    with pytest.raises(UserError, match="grid has no weights"):
        open_extractor("grid", tmp_path / "other.pth")


def test_pictures_become_what_the_network_saw(network: HowTo100M) -> None:
    extractor = Network("s3d-howto100m", official(network))
    for height, width in ((480, 640), (100, 60), (224, 224)):
        picture = np.zeros((height, width, 3), np.uint8)
        middle = slice(height // 2 - 2, height // 2 + 2), slice(width // 2 - 2, width // 2 + 2)
        picture[middle] = 255
        found = extractor.prepare(picture)
        assert found.shape == (224, 224, 3)
        rows, columns = np.nonzero(found[..., 0] > 127)
        assert abs(rows.mean() - 111.5) <= 1
        assert abs(columns.mean() - 111.5) <= 1
