"""On a GPU: the losses and captions of the CPU, and bf16."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from meltr_univl.losses.masking import Masks, draw_masks
from meltr_univl.losses.tasks import LOSSES, Batch, task_losses
from meltr_univl.model.beam_search import beam_search
from meltr_univl.model.config import TINY
from meltr_univl.model.univl import Univl

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


def parts(device: str) -> tuple[Univl, Batch, Masks]:
    torch.manual_seed(0)
    config = replace(TINY, vocabulary=300, video_dim=32)
    model = Univl(config, parts=("align", "cmlm", "cmfm", "decoder", "score"))
    ids = torch.randint(104, 300, (5, 12))
    ids[:, 0], ids[:, 8], ids[:, 9:] = 101, 102, 0
    real = (torch.arange(7) < 5).long().expand(5, -1)
    video = torch.randn(5, 7, 32) * real[..., None]
    columns = [ids, (ids > 0).long(), video, real, ids, (ids > 0).long(), ids.roll(-1, 1), torch.linspace(-3, 3, 5)]
    masks = draw_masks(ids, columns[1], real, vocabulary=300, generator=torch.Generator().manual_seed(1))
    moved = Masks(*(part.to(device) for part in (masks.ids, masks.labels, masks.frames)))
    return model.to(device), Batch(*(column.to(device) for column in columns)), moved


def test_losses_and_captions_are_those_of_the_cpu() -> None:
    found = []
    for device in ("cpu", "cuda"):
        model, batch, masks = parts(device)
        losses = torch.stack(list(task_losses(model, batch, masks, wanted=LOSSES).values()))
        model.eval()
        with torch.no_grad():
            shown = model.encode_video(model.normalise(batch.video), batch.video_mask)
            memory = model.join(
                model.encode_text(batch.text, batch.text_mask), batch.text_mask, shown, batch.video_mask
            )
            mask = torch.cat([batch.text_mask, batch.video_mask], 1)
            captions = beam_search(model, memory, mask, beams=4, length=8)
        found.append((losses.detach().cpu(), captions.ids.cpu(), captions.scores.cpu()))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1][2], found[0][2], rtol=1e-3, atol=1e-3)
    assert torch.equal(found[1][1], found[0][1])


def test_bf16_is_finite_and_near() -> None:
    model, batch, masks = parts("cuda")
    exact = task_losses(model, batch, masks, wanted=LOSSES)
    with torch.autocast("cuda", torch.bfloat16):
        rounded = task_losses(model, batch, masks, wanted=LOSSES)
    sum(rounded.values()).backward()  # type: ignore[union-attr]
    for name, loss in exact.items():
        assert float(rounded[name].detach()) == pytest.approx(float(loss.detach()), rel=0.1, abs=0.1), name
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
