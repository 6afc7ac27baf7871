"""Gradient similarity (Du et al. 2018) against its formula, through `Bilevel`."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from meltr import Bilevel
from meltr.combiners.cosine import CosineSimilarity


def task_gradients(trunk: torch.Tensor, head: torch.Tensor, inputs: torch.Tensor):
    """Return the losses: a primary one, one that agrees with it, one that opposes it, one with a head of its own."""
    hidden = inputs @ trunk
    return [
        hidden[:, 0].square().mean(),
        (hidden[:, 0] * 2 + hidden[:, 1]).square().mean(),
        -hidden[:, 0].square().mean() + hidden[:, 1].square().mean(),
        (hidden @ head - 1).square().mean(),
    ]


@pytest.mark.parametrize("weighted", [True, False])
def test_auxiliary_gradients_count_by_their_cosine_with_the_primary_one(weighted):
    torch.manual_seed(0)
    model = nn.ParameterDict({"trunk": nn.Parameter(torch.randn(3, 2)), "head": nn.Parameter(torch.randn(2))})
    inputs = torch.randn(8, 3)

    def losses():
        return task_gradients(model["trunk"], model["head"], inputs)

    rows = [torch.autograd.grad(losses()[task], model["trunk"])[0].flatten() for task in range(4)]
    cosines = torch.stack([F.cosine_similarity(rows[0], row, dim=0) for row in rows])
    assert cosines[1] > 0 > cosines[2]
    expected = cosines.clamp(min=0) if weighted else (cosines >= 0).float()
    expected[0] = 1
    (own,) = torch.autograd.grad(losses()[3], model["head"])

    result = Bilevel(model, CosineSimilarity(4, weighted=weighted)).backward(losses)
    assert torch.allclose(result.sensitivities, expected, atol=1e-6)
    assert torch.allclose(model["trunk"].grad.flatten(), expected @ torch.stack(rows), atol=1e-5)
    assert torch.allclose(model["head"].grad, own, atol=1e-6)  # no part of the primary gradient: counts whole


def test_a_gradient_of_zero_or_infinity_gives_no_weight_that_is_not_a_number():
    rows = [[torch.zeros(2)], [torch.tensor([1.0, 0.0])]]
    assert CosineSimilarity(2).from_gradients(torch.ones(2), rows)[1].tolist() == [1.0, 0.0]
    rows = [[torch.ones(2)], [torch.tensor([torch.inf, 0.0])]]
    direction, a = CosineSimilarity(2).from_gradients(torch.ones(2), rows)
    assert a.tolist() == [1.0, 1.0]
    assert direction[0].tolist() == [torch.inf, 1.0]
