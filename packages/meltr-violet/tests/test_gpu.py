"""On a GPU: the losses and gradients of the CPU, bf16, compilation and fused windows."""

from __future__ import annotations

import copy
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from meltr_violet.losses.masking import Masks
from meltr_violet.losses.tasks import Batch, LossSettings, draw_batch_masks, task_losses
from meltr_violet.model.config import TINY
from meltr_violet.model.violet import Violet

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
WANTED = ("answer", "vtm", "mtm", "mvm")
SETTINGS = LossSettings(clip="masked")


def moved(value: Any, device: str) -> Any:
    changes = {each.name: getattr(value, each.name) for each in fields(value)}
    return replace(value, **{k: v.to(device) for k, v in changes.items() if isinstance(v, torch.Tensor)})


@pytest.fixture
def parts(tiny_batch) -> tuple[Violet, Batch, Masks]:
    torch.manual_seed(0)
    model = Violet(TINY, heads=("vtm", "mtm", "mvm", "answer"), answers=5, answer_dropout=0.0)
    batch = tiny_batch(4)
    return model, batch, draw_batch_masks(batch, TINY.cell, settings=SETTINGS, generator=torch.Generator())


def found(model: Violet, batch: Batch, masks: Masks, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    model = copy.deepcopy(model).to(device)
    losses = task_losses(model, moved(batch, device), moved(masks, device), wanted=WANTED, settings=SETTINGS)
    stacked = torch.stack(list(losses.values()))
    stacked.sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return stacked.detach().cpu(), gradient.cpu()


def test_losses_and_gradients_are_those_of_the_cpu(parts):
    (losses, gradient), (expected, expected_gradient) = found(*parts, "cuda"), found(*parts, "cpu")
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)
    assert (gradient - expected_gradient).norm() <= 1e-3 * expected_gradient.norm()


def test_bf16_is_finite_and_near(parts):
    expected, expected_gradient = found(*parts, "cuda")
    with torch.autocast("cuda", torch.bfloat16):
        losses, gradient = found(*parts, "cuda")
    torch.testing.assert_close(losses.float(), expected, rtol=0.1, atol=0.1)
    assert torch.nn.functional.cosine_similarity(gradient, expected_gradient, dim=0) > 0.9


def test_a_compiled_model_gives_the_same_losses_and_gradients(parts):
    model, batch, masks = parts
    expected, expected_gradient = found(model, batch, masks, "cuda")
    model = copy.deepcopy(model).to("cuda")
    model.compile()
    losses = task_losses(model, moved(batch, "cuda"), moved(masks, "cuda"), wanted=WANTED, settings=SETTINGS)
    stacked = torch.stack(list(losses.values()))
    stacked.sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).cpu()
    torch.testing.assert_close(stacked.detach().cpu(), expected, rtol=1e-3, atol=1e-4)
    assert (gradient - expected_gradient).norm() <= 5e-3 * expected_gradient.norm()
