"""Coarse and fine labels of CIFAR-100 as an auxiliary loss, and VGG-16, against torchvision and explicit sums."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models.vgg import cfgs, make_layers

from meltr.context import RunContext
from meltr.errors import UserError
from meltr_vision.adapter import VisionAdapter
from meltr_vision.losses.draws import Draws
from meltr_vision.losses.tasks import task_losses
from meltr_vision.model.building import build_classifier
from meltr_vision.model.classifier import Classifier
from meltr_vision.model.resnet import CifarTrunk
from meltr_vision.model.vgg import VGG16
from meltr_vision.options import VisionOptions

Make = Callable[..., RunContext]
DRAWS = Draws(torch.ones(()), torch.arange(6), torch.zeros(6, dtype=torch.int64))


@pytest.fixture(params=["clean", "joint"])
def model(request: pytest.FixtureRequest) -> Classifier:
    torch.manual_seed(0)
    return Classifier(CifarTrunk(1), 64, 5, others=3, batchnorm=request.param).double()


def test_the_loss_on_other_labels_is_their_cross_entropy_on_the_same_features(model: Classifier) -> None:
    images, labels = torch.randn(6, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 4, 0])
    others = torch.tensor([0, 0, 1, 1, 2, 0])
    found = task_losses(model, images, labels, wanted=("classification", "coarse"), draws=DRAWS, others=others)
    alone = task_losses(model, images, labels, wanted=("coarse",), draws=DRAWS, others=others)["coarse"]
    features = model.trunk(images)
    for name, head, wanted in (("classification", model.cls, labels), ("coarse", model.other, others)):
        scores = (features @ head.weight.T + head.bias).float()
        right = scores.gather(1, wanted[:, None])[:, 0]
        assert torch.allclose(found[name], (scores.logsumexp(1) - right).mean())
    assert torch.allclose(alone, found["coarse"])


def test_other_labels_cost_no_pass_of_their_own(model: Classifier) -> None:
    calls: list[int] = []
    model.trunk.register_forward_hook(lambda module, inputs, out: calls.append(len(inputs[0])))
    images = torch.randn(6, 3, 8, 8, dtype=torch.float64)
    model({"classification": images, "coarse": images})
    assert calls == [6]


def prepared(make_context: Make, root: Path, losses: tuple[str, ...], **options: Any) -> tuple[RunContext, Any]:
    context = make_context("cifar100", losses=losses, spec={"data_root": root}, model="resnet20", **options)
    return context, VisionAdapter().build_data(context)


@pytest.mark.parametrize(("classes", "other"), [("fine", "coarse"), ("coarse", "fine")])
def test_batches_hold_both_labels(
    make_context: Make, cifar_writer: Callable[..., Any], tmp_path: Path, classes: str, other: str
) -> None:
    written = cifar_writer(tmp_path)
    context, data = prepared(make_context, tmp_path, ("classification", other), classes=classes)
    batch = next(data.train.batches(0))
    pairs = {"fine": batch["label"], "coarse": batch["other"]}
    if classes == "coarse":
        pairs = {"fine": batch["other"], "coarse": batch["label"]}
    assert torch.equal(pairs["fine"] // 5, pairs["coarse"])
    assert data.left_out == {}
    assert (data.meta["num_classes"], data.meta["num_others"]) == ((100, 20) if classes == "fine" else (20, 100))
    model = VisionAdapter().build_model(context, data)
    losses = VisionAdapter().compute_task_losses(model, batch, context)
    assert list(losses) == ["classification", other]
    assert losses[other].item() == pytest.approx(np.log(20 if other == "coarse" else 100), abs=0.7)
    tested = data.test.labels.tolist()
    assert tested == ([label // 5 for label in written["test"][1]] if classes == "coarse" else written["test"][1])


@pytest.mark.parametrize(
    ("coarse", "lost", "why"), [(False, "coarse", "no coarse labels"), (True, "fine", "are the primary task")]
)
def test_losses_that_the_files_do_not_support_are_dropped(
    make_context: Make, cifar_writer: Callable[..., Any], tmp_path: Path, coarse: bool, lost: str, why: str
) -> None:
    cifar_writer(tmp_path, coarse=coarse)
    _, data = prepared(make_context, tmp_path, ("classification", "mixup", lost))
    assert list(data.left_out) == [lost]
    assert why in data.left_out[lost]
    assert "other" not in next(data.train.batches(0))


def test_coarse_classes_need_coarse_labels(
    make_context: Make, cifar_writer: Callable[..., Any], tmp_path: Path
) -> None:
    cifar_writer(tmp_path / "ten", "cifar10")
    context = make_context("cifar10", spec={"data_root": tmp_path / "ten"}, classes="coarse")
    with pytest.raises(UserError, match="cifar10 has no coarse labels"):
        VisionAdapter().build_data(context)
    cifar_writer(tmp_path / "fine only", coarse=False)
    with pytest.raises(UserError, match="coarse_label_names"):
        prepared(make_context, tmp_path / "fine only", ("classification",), classes="coarse")


def test_vgg16_is_that_of_torchvision() -> None:
    torch.manual_seed(0)
    own, theirs = VGG16().eval(), make_layers(cfgs["D"], batch_norm=True).eval()
    own.load_state_dict(dict(zip(own.state_dict(), theirs.state_dict().values(), strict=True)))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(own(images), theirs(images).flatten(1), atol=1e-6)
    model = build_classifier(VisionOptions(model="vgg16_bn"), classes=10, channels=3, image_size=32, rotation=False)
    assert sum(each.numel() for each in model.parameters()) == 14_728_266  # published for this form, 10 classes


def test_vgg16_refuses_small_images() -> None:
    with pytest.raises(UserError, match="at least 32 pixels, but they have 8"):
        build_classifier(VisionOptions(model="vgg16_bn"), classes=10, channels=1, image_size=8, rotation=False)
