"""The outer gradient on real networks: every estimator against double backward through the whole model."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

from meltr import Bilevel, CentralDifference, DoubleBackward, ForwardMode, LossTransformer, PerTask, Setup
from meltr_vision.adapter import VisionAdapter
from meltr_vision.model.building import build_classifier

RELATIVE = {ForwardMode: 1e-5, PerTask: 1e-5, CentralDifference: 2e-3}


class Recorder(torch.optim.SGD):
    """An outer optimiser that keeps the gradient and moves nothing."""

    def __init__(self, parameters) -> None:
        super().__init__(parameters, lr=0.0)

    def step(self, closure=None):
        self.seen = torch.cat([p.grad.flatten() for g in self.param_groups for p in g["params"] if p.grad is not None])


def outer_gradient(model, context, batch, estimator) -> tuple[torch.Tensor, torch.Tensor]:
    """phi's gradient and g, all random numbers as in every other call."""
    torch.manual_seed(1)
    m = LossTransformer(context.losses, width=32, feedforward=32, scale_hidden=32, start="random")
    recorder = Recorder(m.parameters())
    bilevel = Bilevel(model, m, recorder, estimator=estimator(), setup=Setup(generators=[context.generator]))
    context.generator.manual_seed(5)
    torch.manual_seed(5)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        result = bilevel.backward(lambda: VisionAdapter().compute_task_losses(model, batch, context), outer=True)
    return recorder.seen, result.outer.products


def check(options, make_context, size: int, count: int) -> None:
    context = make_context(**options)
    torch.manual_seed(0)
    model = build_classifier(context.options, classes=10, channels=3, image_size=size, rotation=True).train()
    batch = {"image": torch.randn(count, 3, size, size), "label": torch.randint(0, 10, (count,))}
    expected, g = outer_gradient(copy.deepcopy(model), context, batch, DoubleBackward)
    for estimator, tolerance in RELATIVE.items():
        mine = copy.deepcopy(model)
        found, products = outer_gradient(mine, context, batch, estimator)
        assert (products - g).norm() <= tolerance * g.norm(), estimator
        assert (found - expected).norm() <= tolerance * expected.norm(), estimator
        for (name, weight), before in zip(mine.named_parameters(), model.parameters(), strict=True):
            assert torch.equal(weight, before), (estimator, name)
        plain = copy.deepcopy(model)
        context.generator.manual_seed(5)
        torch.manual_seed(5)
        VisionAdapter().compute_task_losses(plain, batch, context)
        for (name, buffer), once in zip(mine.named_buffers(), plain.buffers(), strict=True):
            assert torch.equal(buffer, once), (estimator, name)


@pytest.mark.parametrize("batchnorm", ["clean", "joint"])
def test_resnet32_with_batchnorm_in_training_mode(make_context, batchnorm):
    check({"batchnorm": batchnorm}, make_context, 16, 8)


def test_vision_transformer_with_stochastic_depth_and_dropout(make_context, monkeypatch):
    import timm

    made = timm.create_model

    def with_noise(name, **settings) -> nn.Module:
        return made(name, **settings, proj_drop_rate=0.1, drop_path_rate=0.2)

    monkeypatch.setattr(timm, "create_model", with_noise)
    check({"model": "timm/vit_tiny_patch16_224", "image_size": 32}, make_context, 32, 4)
