"""Two processes: every loss that compares examples is, on average and in gradient, that of the joined batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from meltr_univl.losses.masking import Masks
from meltr_univl.losses.tasks import Batch, LossSettings, task_losses
from meltr_univl.model.config import ModelConfig
from meltr_univl.model.univl import Univl
from ranks_helper import run_ranks

CONFIG = ModelConfig(
    width=16,
    heads=2,
    feedforward=32,
    text_layers=1,
    visual_layers=1,
    cross_layers=1,
    decoder_layers=1,
    vocabulary=150,
    text_positions=12,
    visual_positions=8,
    cross_positions=20,
    video_dim=6,
    dropout=0.0,
    spread=0.2,
)
ROWS = 3
NAMES = ("joint", "align", "cmfm", "m_joint", "m_align")
FORMS = {
    "usual": LossSettings(),
    "other": LossSettings(joint_loss="mil_nce", align_loss="margin", pairs_per_pass=4),
}


def joined() -> tuple[Univl, Batch, Masks]:
    """A model, the batch of both processes, and two hidden frames in each (a mean of means is then the mean)."""
    torch.manual_seed(0)
    model = Univl(CONFIG, parts=("align", "cmfm")).double()
    ids = torch.randint(104, 150, (2 * ROWS, 8))
    ids[:, 0], ids[:, 5], ids[:, 6:] = 101, 102, 0
    real = (torch.arange(5) < torch.tensor([3, 0, 5, 3, 2, 4])[:, None]).long()
    video = torch.randn(2 * ROWS, 5, 6, dtype=torch.float64) * real[..., None]
    hidden = torch.zeros_like(real, dtype=torch.bool)
    hidden[[0, 2, 3, 5], [1, 0, 2, 1]] = True
    masked = ids.clone()
    masked[:, 2] = 103
    batch = Batch(ids, (ids > 0).long(), video, real, ids, (ids > 0).long(), ids)
    return model, batch, Masks(masked, torch.full_like(ids, -100), hidden)


def values_and_slopes(rows: slice, settings: LossSettings) -> tuple[Tensor, Tensor]:
    """Return the losses of rows of the batch, and the gradient of a sum in which each has its own weight."""
    model, batch, masks = joined()
    part = Batch(**{name: column[rows] for name, column in vars(batch).items() if column is not None})
    hidden = Masks(**{name: column[rows] for name, column in vars(masks).items()})
    losses = torch.stack(list(task_losses(model, part, hidden, wanted=NAMES, settings=settings).values()))
    (losses @ torch.arange(1, len(NAMES) + 1).double()).backward()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return losses.detach(), torch.cat([each.flatten() for each in grads])


def in_every_process(ranks: Any) -> dict[str, list[Tensor]]:
    rows = slice(ranks.rank * ROWS, (ranks.rank + 1) * ROWS)
    found = {}
    for form, settings in FORMS.items():
        found[form] = [ranks.mean(tensor) for tensor in values_and_slopes(rows, settings)]
        found[f"{form} own"] = [values_and_slopes(rows, replace(settings, negatives="own"))[0]]
    return found


@pytest.fixture(scope="module")
def found() -> list[dict[str, list[Tensor]]]:
    return [each.result for each in run_ranks(in_every_process, timeout=240.0)]


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_all_negatives_are_those_of_the_joined_batch(found: list[dict[str, list[Tensor]]], form: str) -> None:
    values, slopes = values_and_slopes(slice(None), FORMS[form])
    for process in found:
        torch.testing.assert_close(process[form][0], values, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(process[form][1], slopes, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_own_negatives_are_those_of_the_part(found: list[dict[str, list[Tensor]]], form: str) -> None:
    for rank, process in enumerate(found):
        values, _ = values_and_slopes(slice(rank * ROWS, (rank + 1) * ROWS), FORMS[form])
        torch.testing.assert_close(process[f"{form} own"][0], values, rtol=1e-10, atol=1e-12)
