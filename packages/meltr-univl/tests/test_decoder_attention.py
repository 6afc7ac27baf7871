"""Dropout in the decoder's attention: single weights fall out, and what stays is scaled up."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from meltr_univl.model.config import TINY
from meltr_univl.model.layers import Attention

PROBABILITY = 0.3
PLACES = 8


@pytest.fixture(params=["fused", "eager"])
def attention(request: pytest.FixtureRequest) -> Attention:
    torch.manual_seed(0)
    return Attention(replace(TINY, attention=request.param, dropout=PROBABILITY)).double()


def weights(attention: Attention, states: torch.Tensor) -> torch.Tensor:
    """Return what each query takes from each key, (B, heads, Q, PLACES): each value is a unit vector of its own."""
    batch, _, width = states.shape
    size = width // attention.heads
    assert size >= PLACES
    keys, _ = attention.keys_values(states[:, :PLACES])
    units = torch.eye(PLACES, size, dtype=states.dtype).expand(batch, attention.heads, PLACES, size)
    mixed = attention(states, keys, units, None)
    return mixed.unflatten(-1, (attention.heads, size)).transpose(1, 2)[..., :PLACES]


def test_training_drops_single_weights_and_scales_the_others(attention: Attention) -> None:
    states = torch.randn(4, 50, TINY.width, dtype=torch.float64)
    clean = weights(attention.eval(), states)
    torch.testing.assert_close(clean.sum(-1), torch.ones_like(clean[..., 0]))
    noisy = weights(attention.train(), states)
    dropped = noisy == 0
    torch.testing.assert_close(noisy[~dropped], clean[~dropped] / (1 - PROBABILITY))
    # A mean over n independent weights: three standard deviations.
    assert abs(dropped.double().mean() - PROBABILITY) < 3 * (PROBABILITY * (1 - PROBABILITY) / dropped.numel()) ** 0.5
    assert 0 < dropped.sum(-1).float().mean() < PLACES  # not whole rows
    assert dropped.any(-1).double().mean() > 0.5
