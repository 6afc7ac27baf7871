"""On a GPU: the losses of the CPU, bf16, and a compiled model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from meltr_allinone.losses.draws import draw
from meltr_allinone.losses.tasks import Batch, task_losses
from meltr_allinone.model.all_in_one import AllInOne
from meltr_allinone.model.config import TINY

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
WANTED = ("vtm", "mlm", "wpa", "contrastive", "rank")


def parts(device: str) -> tuple[AllInOne, Batch]:
    torch.manual_seed(0)
    model = AllInOne(replace(TINY, vocabulary=300), heads=("itm", "mlm", "contrastive", "rank"))
    ids = torch.randint(104, 300, (6, 16))
    ids[:, 0], ids[:, 9], ids[:, 10:] = 101, 102, 0
    return model.to(device), Batch(torch.randn(6, 3, 3, 64, 64).to(device), ids.to(device))


def test_losses_and_gradients_are_those_of_the_cpu() -> None:
    found = []
    for device in ("cpu", "cuda"):
        model, batch = parts(device)
        draws = draw(model, batch.ids, frames=3, generator=torch.Generator().manual_seed(1))  # drawn on the CPU
        losses = torch.stack(list(task_losses(model, batch, draws, wanted=WANTED).values()))
        losses.sum().backward()
        found.append((losses.detach().cpu(), model.transformer.pos_embed.grad.cpu()))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-3, atol=1e-5)


def test_bf16_is_finite_and_near() -> None:
    model, batch = parts("cuda")
    draws = draw(model, batch.ids, frames=3, generator=torch.Generator("cuda").manual_seed(1))
    exact = task_losses(model, batch, draws, wanted=WANTED)
    with torch.autocast("cuda", torch.bfloat16):
        rounded = task_losses(model, batch, draws, wanted=WANTED)
    sum(rounded.values()).backward()  # type: ignore[union-attr]
    for name, loss in exact.items():
        assert float(rounded[name].detach()) == pytest.approx(float(loss.detach()), rel=0.1, abs=0.1), name
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
