"""What only a GPU can show; run by ``nox -s gpu``."""

from __future__ import annotations

import pytest
import torch

from meltr import Bilevel, CentralDifference, DoubleBackward, Estimator, ForwardMode, LossTransformer, PerTask, Setup
from meltr.engine.run import execute
from meltr.plugins import discover
from meltr.settings import resolve
from meltr_vision.adapter import VisionAdapter
from meltr_vision.model.building import build_classifier

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]

TOLERANCE = {ForwardMode: 1e-4, PerTask: 1e-4, CentralDifference: 5e-3}


class NoStep(torch.optim.SGD):
    def __init__(self, parameters) -> None:
        super().__init__(parameters, lr=0.0)


@pytest.mark.parametrize(("model", "size"), [("resnet32", 32), ("timm/vit_tiny_patch16_224", 64)])
def test_every_estimator_agrees_with_double_backward(make_context, monkeypatch, model, size):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    context = make_context(model=model, **({"image_size": size} if "vit" in model else {}))
    device = torch.device("cuda")
    torch.manual_seed(0)
    net = build_classifier(context.options, classes=10, channels=3, image_size=size, rotation=True).to(device).train()
    batch = {
        "image": torch.randn(64, 3, size, size, device=device),
        "label": torch.randint(0, 10, (64,), device=device),
    }
    generator = torch.Generator(device)
    context = type(context)(**{**vars(context), "device": device, "generator": generator})

    def products(estimator: type[Estimator]) -> torch.Tensor:
        torch.manual_seed(1)
        m = LossTransformer(context.losses, width=32, start="random").to(device)
        bilevel = Bilevel(net, m, NoStep(m.parameters()), estimator=estimator(), setup=Setup(generators=[generator]))
        generator.manual_seed(5)
        torch.manual_seed(5)
        net.zero_grad()
        result = bilevel.backward(lambda: VisionAdapter().compute_task_losses(net, batch, context), outer=True)
        return result.outer.products

    expected = products(DoubleBackward)
    for estimator, tolerance in TOLERANCE.items():
        assert (products(estimator) - expected).norm() <= tolerance * expected.norm(), estimator


@pytest.mark.parametrize("estimator", ["auto", "forward", "difference", "per_task"])
@pytest.mark.parametrize(
    "settings",
    [
        {"train.precision": "bf16", "options.channels_last": True},
        {"train.precision": "bf16", "train.compile": True},
        {"bilevel.outer_batch": "replay"},
        {"bilevel.outer_batch": "held_out", "data.held_out": 128},
    ],
    ids=["bf16", "compile", "replay", "held_out"],
)
def test_a_run_learns_on_the_gpu(tmp_path, settings, estimator):
    registry = discover()
    flags = {"device": "cuda", "train.epochs": 4, "bilevel.estimator": estimator, **settings}
    spec = resolve(registry, backbone="vision", task="classification", dataset="digits", flags=flags)
    results = execute(spec, run_dir=tmp_path / "run", registry=registry)
    assert results["device"].startswith("cuda")
    assert results["test"]["metrics"]["top1"] > 70
    assert results["peak_memory_mb"] > 0
