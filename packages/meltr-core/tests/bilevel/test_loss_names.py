"""A mapping of losses is matched by the combiner's names, and results can be asked for by name."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from meltr import Bilevel, LinearCombiner, UserError

NAMES = ["ce", "size", "odd"]


def parts(names=NAMES):
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    combiner = LinearCombiner(names).double()
    with torch.no_grad():
        combiner.raw.copy_(torch.tensor([0.1, -0.4, 0.7]))
    return model, combiner, torch.randn(8, 4, dtype=torch.float64), torch.randint(3, (8,))


def losses(model, x, y, names):
    output = model(x)
    every = {
        "ce": F.cross_entropy(output, y),
        "size": output.square().mean(),
        "odd": output.pow(3).mean(),
        "other": output.abs().mean(),
    }
    return {name: every[name] for name in names}


def loop(model, combiner) -> Bilevel:
    return Bilevel(model, combiner, torch.optim.SGD(combiner.parameters(), 0.1))


@pytest.mark.parametrize("outer", [False, True])
@pytest.mark.parametrize("order", [["size", "ce", "odd"], ["odd", "size", "ce"]])
def test_the_order_of_a_mapping_does_not_matter(order, outer):
    model, combiner, x, y = parts()
    plain, other = copy.deepcopy(model), copy.deepcopy(combiner)
    result = loop(model, combiner).backward(lambda: losses(model, x, y, order), outer=outer)
    expected = loop(plain, other).backward(lambda: list(losses(plain, x, y, NAMES).values()), outer=outer)
    assert torch.equal(result.losses, expected.losses)
    assert torch.equal(combiner.raw, other.raw)
    assert torch.equal(model.weight.grad, plain.weight.grad)
    if outer:
        assert torch.equal(result.outer.products, expected.outer.products)
        assert not torch.equal(combiner.raw, parts()[1].raw)


@pytest.mark.parametrize("wrong", [["ce", "size"], ["ce", "size", "other"], ["ce", "size", "odd", "other"]])
def test_another_name_or_a_missing_one_is_an_error_with_both_lists(wrong):
    model, combiner, x, y = parts()
    with pytest.raises(UserError) as error:
        loop(model, combiner).backward(lambda: losses(model, x, y, wrong))
    assert str(wrong) in str(error.value)
    assert str(NAMES) in str(error.value)
    assert isinstance(error.value, ValueError)
    assert model.weight.grad is None


@pytest.mark.parametrize("given", [["size", "ce"], ["other", "ce"], ["ce"]])
def test_the_held_out_batch_needs_the_primary_loss_only(given):
    model, combiner, x, y = parts()
    plain, other = copy.deepcopy(model), copy.deepcopy(combiner)
    other_x = x + 1
    result = loop(model, combiner).backward(
        lambda: losses(model, x, y, NAMES), primary=lambda: losses(model, other_x, y, given), outer=True
    )
    expected = loop(plain, other).backward(
        lambda: losses(plain, x, y, NAMES), primary=lambda: [F.cross_entropy(plain(other_x), y)], outer=True
    )
    torch.testing.assert_close(result.outer.products, expected.outer.products, rtol=1e-12, atol=0)


def test_a_held_out_batch_without_the_primary_loss_is_an_error():
    model, combiner, x, y = parts()
    bilevel = loop(model, combiner)
    with pytest.raises(UserError, match=r"\['size'\].*\['ce', 'size', 'odd'\]\.\n.*'ce'"):
        bilevel.backward(lambda: losses(model, x, y, NAMES), primary=lambda: losses(model, x, y, ["size"]), outer=True)
    with pytest.raises(UserError, match="'ce'"):
        bilevel.outer_step(lambda: losses(model, x, y, ["size"]), lambda: losses(model, x, y, NAMES))


@pytest.mark.parametrize("kind", ["number", "module"])
def test_the_first_mapping_names_the_losses_of_a_combiner_without_names(kind):
    model, combiner, x, y = parts(3)
    chosen = combiner if kind == "number" else nn.Sequential(nn.Linear(3, 1)).double()
    bilevel = loop(model, chosen)
    first = bilevel.backward(lambda: losses(model, x, y, NAMES))
    again = bilevel.backward(lambda: losses(model, x, y, NAMES[::-1]))
    assert torch.equal(first.losses, again.losses)
    assert list(again.weights) == NAMES
    with pytest.raises(UserError, match="other"):
        bilevel.backward(lambda: losses(model, x, y, ["ce", "size", "other"]))


def test_a_number_of_losses_that_does_not_fit_is_an_error():
    model, combiner, x, y = parts(3)
    with pytest.raises(UserError, match=r"\['ce', 'size'\].*'auxiliary_2'"):
        loop(model, combiner).backward(lambda: losses(model, x, y, ["ce", "size"]))


def test_results_by_name():
    model, combiner, x, y = parts()
    step = loop(model, combiner).backward(lambda: losses(model, x, y, ["odd", "ce", "size"]), outer=True)
    torch.testing.assert_close(step.named_losses["size"], model(x).detach().square().mean(), rtol=1e-12, atol=0)
    torch.testing.assert_close(step.weights["odd"], F.softplus(combiner.raw.detach()[2]), rtol=1e-12, atol=0)
    assert {name: value.shape for name, value in step.outer.alignment.items()} == dict.fromkeys(NAMES, torch.Size([]))
    assert torch.equal(step.outer.alignment["odd"], step.outer.products[2])


def test_losses_in_a_sequence_have_the_combiner_s_names():
    model, combiner, x, y = parts()
    step = loop(model, combiner).backward(lambda: list(losses(model, x, y, NAMES).values()))
    assert list(step.weights) == list(step.named_losses) == NAMES


def test_a_loss_per_example_is_named():
    model, combiner, x, y = parts()
    with pytest.raises(UserError, match=r"'size' has shape \(8,\), expected a 0-dim tensor"):
        loop(model, combiner).backward(lambda: losses(model, x, y, NAMES) | {"size": model(x).square().mean(1)})
    with pytest.raises(UserError, match="'odd' is a float"):
        loop(model, combiner).backward(lambda: losses(model, x, y, NAMES) | {"odd": 1.0})
