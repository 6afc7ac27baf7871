from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from meltr import LinearCombiner, LossTransformer, sensitivities
from meltr.combiners.fixed import FixedCombiner, plain_sum, primary_only


def reference_encoder(layer: nn.TransformerEncoderLayer, x: torch.Tensor, heads: int) -> torch.Tensor:
    """A post-norm encoder layer written out with matrices, from the paper's description."""
    width = x.shape[1]
    q, k, v = (x @ layer.self_attn.in_proj_weight.T + layer.self_attn.in_proj_bias).split(width, 1)
    mixed = []
    for h in range(heads):
        part = slice(h * width // heads, (h + 1) * width // heads)
        weights = torch.softmax(q[:, part] @ k[:, part].T / math.sqrt(width / heads), 1)
        mixed.append(weights @ v[:, part])
    x = layer.norm1(x + layer.self_attn.out_proj(torch.cat(mixed, 1)))
    return layer.norm2(x + layer.linear2(layer.linear1(x).relu()))


@pytest.mark.parametrize("embedding", ["scale+task", "scale"])
def test_equals_the_formula_written_out(embedding):
    torch.manual_seed(0)
    m = LossTransformer(3, width=32, heads=4, feedforward=24, scale_hidden=8, embedding=embedding, start="random")
    losses = torch.tensor([0.7, 2.0, 5.0])
    tokens = torch.stack([m.loss_fc2(m.loss_fc1(loss.reshape(1)).relu()) for loss in losses])
    if embedding == "scale+task":
        tokens = tokens + m.task_embedding.weight
    expected = m.fc1(reference_encoder(m.encoder, tokens, 4).mean(0))[0]
    torch.testing.assert_close(m(losses), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("losses", "sizes", "numbers"),
    [
        (8, {"width": 256, "feedforward": 512, "scale_hidden": 128}, 562_688),  # with UniVL
        (2, {"width": 128, "feedforward": 128, "scale_hidden": 128}, 116_736),  # with All-in-one
    ],
)
def test_it_has_as_many_parameters_as_the_released_ones(losses, sizes, numbers):
    assert sum(parameter.numel() for parameter in LossTransformer(losses, **sizes).parameters()) == numbers


def test_sensitivities_equal_differences():
    torch.manual_seed(0)
    m = LossTransformer(4, width=16, heads=2, feedforward=16, scale_hidden=8, start="random").double()
    losses = torch.tensor([0.5, 1.0, 3.0, 0.1], dtype=torch.float64)
    _, a = sensitivities(m, losses)
    step = 1e-6 * torch.eye(4, dtype=torch.float64)
    differences = torch.stack([(m(losses + e) - m(losses - e)) / 2e-6 for e in step])
    torch.testing.assert_close(a, differences.detach(), atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_can_be_differentiated_twice_in_every_mode(training, dropout):
    m = LossTransformer(3, width=16, heads=2, dropout=dropout, start="random").train(training)
    _, a = sensitivities(m, torch.tensor([1.0, 2.0, 3.0]), create_graph=True)
    gradients = torch.autograd.grad(a.square().sum(), list(m.parameters()), allow_unused=True)
    norms = {
        n: None if g is None else float(g.norm()) for (n, _), g in zip(m.named_parameters(), gradients, strict=True)
    }
    assert norms["loss_fc1.weight"] > 0
    assert norms["encoder.norm2.bias"] is None  # m is linear in it: its slope does not depend on it


def test_start_at_the_sum_is_exact_and_can_move():
    m = LossTransformer(3, start="sum")
    losses = torch.tensor([0.3, 4.0, 1.5])
    combined, a = sensitivities(m, losses, create_graph=True)
    assert combined.item() == pytest.approx(5.8, abs=1e-6)
    torch.testing.assert_close(a.detach(), torch.ones(3), atol=0, rtol=0)
    (slope,) = torch.autograd.grad(a[1], [m.fc1.weight])
    assert float(slope.norm()) > 0


def test_fit_brings_the_released_form_to_the_sum():
    torch.manual_seed(0)
    m = LossTransformer(3, width=32, feedforward=32, scale_hidden=32, start="fit")
    losses = torch.tensor([2.0, 1.0, 0.5])
    before = (sensitivities(m, losses)[1] - 1).abs().max()
    m.prepare(losses)
    after = (sensitivities(m, losses)[1] - 1).abs().max()
    assert after < 0.25 < before


def test_task_embedding_alone_warns_and_has_no_slope():
    with pytest.warns(UserWarning, match="cannot train"):
        m = LossTransformer(3, width=16, embedding="task", start="random")
    _, a = sensitivities(m, torch.tensor([1.0, 2.0, 3.0]), create_graph=True)
    assert a.abs().max() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"losses": 0}, "at least 1"),
        ({"losses": ["a", "a"]}, "must differ"),
        ({"losses": 3, "width": 30}, "not a multiple"),
        ({"losses": 3, "embedding": "both"}, "scale\\+task"),
        ({"losses": 3, "start": "zero"}, "'sum', 'fit' or 'random'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        LossTransformer(**arguments)


def test_wrong_number_of_losses_is_named():
    with pytest.raises(ValueError, match="expected 3 losses"):
        LossTransformer(3, width=16)(torch.ones(4))


def test_fixed_combiners():
    losses = torch.tensor([1.0, 2.0, 4.0])
    assert float(plain_sum(["a", "b", "c"])(losses)) == 7
    assert float(primary_only(["a", "b", "c"])(losses)) == 1
    assert float(FixedCombiner(3, [1, 0.5, 0.25])(losses)) == 3
    with pytest.raises(ValueError, match="2 weights for 3 losses"):
        FixedCombiner(3, [1, 2])


@pytest.mark.parametrize("positive", [True, False])
def test_linear_combiner_starts_where_asked_and_its_slope_is_its_weight(positive):
    m = LinearCombiner(3, start_weight=0.7, positive=positive)
    combined, a = sensitivities(m, torch.tensor([1.0, 2.0, 4.0]))
    torch.testing.assert_close(a, torch.full((3,), 0.7))
    assert float(combined) == pytest.approx(4.9, abs=1e-5)
    with pytest.raises(ValueError, match="start_weight"):
        LinearCombiner(3, start_weight=0.0)


def shares(losses: int = 3) -> LossTransformer:
    torch.manual_seed(0)
    return LossTransformer(losses, width=16, heads=4, feedforward=16, scale_hidden=8, readout="shares").double()


def test_shares_start_at_the_plain_sum_and_stay_positive_with_mean_one():
    combiner, losses = shares(), torch.tensor([0.7, 2.0, 5.0], dtype=torch.float64)
    combined, weights = sensitivities(combiner, losses)
    assert combined == pytest.approx(7.7)
    assert weights.tolist() == pytest.approx([1.0, 1.0, 1.0])
    nn.init.normal_(combiner.fc1.weight, std=3.0)
    combined, weights = sensitivities(combiner, losses)
    assert weights.min() > 0
    assert weights.mean() == pytest.approx(1.0)
    assert weights.std() > 0.1
    assert combined == pytest.approx(float((weights * losses).sum()))  # the weights count as constants


def test_an_outer_step_of_shares_moves_weight_to_the_task_that_is_aligned():
    combiner, losses = shares(), torch.tensor([0.7, 2.0, 5.0], dtype=torch.float64)
    g = torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64)
    optimizer = torch.optim.Adam(combiner.parameters(), 1e-2)
    before = sensitivities(combiner, losses)[1]
    for _ in range(20):
        optimizer.zero_grad()
        (-(sensitivities(combiner, losses, create_graph=True)[1] * g).sum()).backward()
        optimizer.step()
    after = sensitivities(combiner, losses)[1]
    assert after[0] > before[0]
    assert after[1] < before[1]


def test_shares_have_no_fit_to_the_sum():
    with pytest.raises(ValueError, match="start='sum'"):
        LossTransformer(2, width=16, heads=4, readout="shares", start="fit")
    with pytest.raises(ValueError, match="'mean' or 'shares'"):
        LossTransformer(2, width=16, heads=4, readout="share")
