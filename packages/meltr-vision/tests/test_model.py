"""The network: published parameter counts, option A against explicit loops, BatchNorm's statistics."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from meltr.errors import UserError
from meltr_vision.model.building import build_classifier
from meltr_vision.model.classifier import Classifier
from meltr_vision.model.resnet import CifarTrunk, ShortcutA
from meltr_vision.options import VisionOptions
from meltr_vision.weights.pretrained import load_pretrained


def build(
    classes: int = 100, channels: int = 3, size: int = 32, rotation: bool = False, **options: object
) -> Classifier:
    return build_classifier(
        VisionOptions(**options), classes=classes, channels=channels, image_size=size, rotation=rotation
    )


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("shortcut", "classes", "expected"),
    [("A", 100, 470_004), ("A", 10, 464_154), ("B", 100, 472_756), ("B", 10, 466_906)],
)
def test_published_parameter_counts(shortcut: str, classes: int, expected: int) -> None:
    assert count(build(classes, shortcut=shortcut)) == expected
    with_head = build(classes, shortcut=shortcut, rotation=True)
    assert count(with_head) == expected + 64 * 4 + 4
    assert count(with_head) - count(with_head.rot) == expected


@pytest.mark.parametrize(
    ("name", "millions"), [("resnet20", 0.27), ("resnet44", 0.66), ("resnet56", 0.85), ("resnet110", 1.7)]
)
def test_table_6_of_the_resnet_paper(name: str, millions: float) -> None:
    assert count(build(10, model=name)) / 1e6 == pytest.approx(millions, rel=0.025)


def test_multiply_adds_and_depth() -> None:
    trunk = CifarTrunk(5)
    total, layers = 0, 0

    def hook(layer: nn.Module, _: object, out: Tensor) -> None:
        nonlocal total, layers
        layers += 1
        total += layer.weight.numel() * out.shape[2] * out.shape[3]

    for layer in trunk.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(hook)
    assert trunk(torch.zeros(1, 3, 32, 32)).shape == (1, 64)
    assert layers + 1 == 32
    assert total / 1e6 == pytest.approx(69, abs=0.5)


def test_option_a_against_explicit_loops() -> None:
    x = np.random.default_rng(0).normal(size=(2, 16, 6, 6)).astype(np.float32)
    expected = np.zeros((2, 32, 3, 3), np.float32)
    for channel in range(16):
        for row in range(3):
            for column in range(3):
                expected[:, channel + 8, row, column] = x[:, channel, 2 * row, 2 * column]
    np.testing.assert_array_equal(ShortcutA(16, 32, 2)(torch.from_numpy(x)).numpy(), expected)


def test_he_initialisation() -> None:
    trunk = CifarTrunk(5)
    weight = trunk.stages[2][3].conv1.weight
    assert float(weight.detach().std()) == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.02)
    assert all(
        bool((m.weight == 1).all() and (m.bias == 0).all()) for m in trunk.modules() if isinstance(m, nn.BatchNorm2d)
    )


def test_the_rotation_head_leaves_the_other_weights_alone() -> None:
    models = []
    for rotation in (False, True):
        torch.manual_seed(0)
        models.append(build(10, rotation=rotation, model="resnet20").state_dict())
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())


def views(size: int = 16) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {
        name: torch.randn(4, 3, size, size) * (i + 1) for i, name in enumerate(("classification", "mixup", "rotation"))
    }


def test_clean_statistics_are_those_of_the_clean_pass_alone() -> None:
    model = build(10, rotation=True, model="resnet20").train()
    alone = copy.deepcopy(model)
    inputs = views()
    named = model(inputs)
    logits = alone(inputs["classification"])
    torch.testing.assert_close(named["classification"], logits)
    for name, value in alone.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    assert all(m.track_running_stats for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_joint_statistics_are_those_of_the_mixture() -> None:
    model = build(10, rotation=True, model="resnet20", batchnorm="joint").train()
    inputs = views()
    named = model(inputs)
    first = nn.functional.conv2d(torch.cat(list(inputs.values())), model.trunk.conv.weight, padding=1)
    torch.testing.assert_close(model.trunk.bn.running_mean, 0.1 * first.mean((0, 2, 3)))
    assert {name: tuple(each.shape) for name, each in named.items()} == {
        "classification": (4, 10),
        "mixup": (4, 10),
        "rotation": (4, 4),
    }


def test_clean_and_joint_agree_in_eval_mode() -> None:
    model = build(10, rotation=True, model="resnet20").eval()
    separate = model(views())
    model.batchnorm = "joint"
    for name, each in model(views()).items():
        torch.testing.assert_close(each, separate[name])


def test_missing_rotation_head() -> None:
    with pytest.raises(RuntimeError, match="without a rotation head"):
        build(10, model="resnet20")(views())


def test_channels_last_changes_no_number() -> None:
    torch.manual_seed(0)
    plain = build(10, model="resnet20").eval()
    torch.manual_seed(0)
    other = build(10, model="resnet20", channels_last=True).eval()
    assert other.trunk.conv.weight.is_contiguous(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(plain(x), other(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "size", "channels"), [("resnet18", 32, 3), ("test_vit", 32, 3), ("mobilenetv3_small_050", 64, 1)]
)
def test_timm_models(name: str, size: int, channels: int) -> None:
    model = build(7, channels, size, rotation=True, model=f"timm/{name}").train()
    x = torch.randn(4, channels, size, size)
    named = model({"classification": x, "rotation": x})
    assert named["classification"].shape == (4, 7)
    assert named["rotation"].shape == (4, 4)


def test_timm_trunk_is_timms_own_model() -> None:
    torch.manual_seed(0)
    model = build(5, model="timm/resnet18").eval()
    reference = timm.create_model("resnet18", num_classes=5).eval()
    state = model.trunk.state_dict()
    reference.load_state_dict({**state, "fc.weight": model.cls.weight, "fc.bias": model.cls.bias})
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x), reference(x))


def test_unknown_names() -> None:
    with pytest.raises(UserError, match="timm has no model 'resnet81'") as caught:
        build(model="timm/resnet81")
    assert "Did you mean 'resnet" in str(caught.value)
    with pytest.raises(UserError, match="not with the tag 'nonsense'") as caught:
        build(model="timm/resnet18.nonsense")
    assert "a1_in1k" in str(caught.value)
    with pytest.raises(ValueError, match="Did you mean 'resnet32'"):
        VisionOptions(model="resnet23")
    with pytest.raises(ValueError, match="no published weights"):
        VisionOptions(pretrained=True)


def test_pretrained_weights_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, pretrained: bool = False, **kwargs: object) -> nn.Module:
        raise OSError("network is unreachable")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match="cannot be loaded: OSError: network is unreachable") as caught:
        build(model="timm/resnet18", pretrained=True)
    assert "options.weights_file=FILE" in str(caught.value)


def test_unsuitable_image_size() -> None:
    with pytest.raises(UserError, match="does not accept images of 8x8"):
        build(size=8, model="timm/vgg11")


def test_weights_file(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    source = build(10, model="resnet20")
    save_file(source.state_dict(), tmp_path / "run.safetensors")
    torch.save({"state_dict": {**source.trunk.state_dict(), "fc.weight": torch.zeros(3)}}, tmp_path / "w.pt")
    for file in ("run.safetensors", "w.pt"):
        model = build(5, model="resnet20", weights_file=tmp_path / file)
        assert torch.equal(model.trunk.conv.weight, source.trunk.conv.weight)
    with pytest.raises(UserError, match=r"is not a file of weights of this model: it lacks \d+ tensors"):
        build(model="resnet32", weights_file=tmp_path / "w.pt")
    with pytest.raises(UserError, match="have another shape"):
        build(channels=1, model="resnet20", weights_file=tmp_path / "w.pt")
    (tmp_path / "bad.pt").write_bytes(b"nothing")
    torch.save([1, 2], tmp_path / "list.pt")
    problems = {
        "bad.pt": "cannot be read",
        "list.pt": "holds no state dict",
        "absent.safetensors": "no file of weights",
    }
    for file, problem in problems.items():
        with pytest.raises(UserError, match=problem):
            load_pretrained(source.trunk, tmp_path / file)


def test_whole_model_compiles_to_one_graph() -> None:
    torch.compiler.reset()
    model = build(10, rotation=True, model="resnet20").train()
    plain = copy.deepcopy(model)
    model.compile(backend="eager", fullgraph=True)
    for _ in range(2):
        found, expected = model(views()), plain(views())
    for name, each in expected.items():
        torch.testing.assert_close(found[name], each)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value)
