"""BertAdam against torch's AdamW with its bias correction undone, its formulas, and over two processes."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor

from meltr.optim.bert_adam import BertAdam
from meltr.optim.building import decay_groups
from ranks_helper import run_ranks


def model(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 2)).to(dtype)


def put_gradients(net: nn.Module, seed: int, size: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.grad = (size * drawn / drawn.norm()).to(parameter)


@given(
    beta1=st.floats(0, 0.99),
    beta2=st.floats(0, 0.9999),
    decay=st.floats(0, 1),
    rates=st.lists(st.floats(0, 0.1), min_size=1, max_size=5),
)
@settings(deadline=None, max_examples=25, derandomize=True)
def test_it_is_adamw_without_the_bias_correction(beta1, beta2, decay, rates):
    """AdamW's step n with rate r c1 / sqrt(c2), eps / sqrt(c2) and decay d / (c1 / sqrt(c2)) has the factors undone."""
    one = model()
    other = copy.deepcopy(one)
    ours = BertAdam(one.parameters(), betas=(beta1, beta2), eps=1e-3, weight_decay=decay, max_grad_norm=None)
    theirs = torch.optim.AdamW(other.parameters(), betas=(beta1, beta2))
    for number, rate in enumerate(rates, 1):
        c1, root = 1 - beta1**number, math.sqrt(1 - beta2**number)
        ours.param_groups[0]["lr"] = rate
        theirs.param_groups[0].update(lr=rate * c1 / root, eps=1e-3 / root, weight_decay=decay * root / c1)
        for net, optimizer in ((one, ours), (other, theirs)):
            put_gradients(net, number)
            optimizer.step()
    for found, expected in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_first_step_is_three_times_that_of_adam():
    """(1 - b1) g / sqrt((1 - b2) g^2) = 0.1 / sqrt(0.001) at every size of the gradient."""
    parameter = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    parameter.grad = torch.tensor([1e-3, -1.0, 50.0], dtype=torch.float64)
    BertAdam([parameter], 1.0, eps=0.0, weight_decay=0.0).step()
    expected = torch.tensor([-1.0, 1.0, -1.0], dtype=torch.float64) * 0.1 / math.sqrt(0.001)
    torch.testing.assert_close(parameter.detach(), expected, rtol=1e-12, atol=0)


def test_each_tensor_is_clipped_on_its_own_and_gradients_stay():
    """A long gradient acts as if it were scaled to the limit, a short one as it is."""
    one, other = model(), model()
    ours = BertAdam(one.parameters(), 0.01, max_grad_norm=0.5)
    unclipped = BertAdam(other.parameters(), 0.01, max_grad_norm=None)
    for step, size in enumerate((0.1, 3.0, 0.4)):
        put_gradients(one, step, size)
        for number, parameter in enumerate(one.parameters()):
            parameter.grad *= 10 if number % 2 else 1
        before = [parameter.grad.clone() for parameter in one.parameters()]
        for parameter, gradient in zip(other.parameters(), before, strict=True):
            parameter.grad = gradient * min(1.0, 0.5 / (float(gradient.norm()) + 1e-6))
        ours.step()
        unclipped.step()
        for parameter, gradient in zip(one.parameters(), before, strict=True):
            assert torch.equal(parameter.grad, gradient)
    for found, expected in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_decay_follows_the_rate_and_spares_its_group():
    """With gradients of zero all that is left is w (1 - lr decay) a step."""
    net = model()
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    groups = decay_groups(net, spared=("bias", "1.weight"), lr_scales={"2.": 0.5})
    optimizer = BertAdam(groups, weight_decay=0.1)
    assert sorted((g["lr_scale"], g["weight_decay"], len(g["params"])) for g in optimizer.param_groups) == [
        (0.5, 0.0, 1),
        (0.5, 0.1, 1),
        (1.0, 0.0, 3),
        (1.0, 0.1, 1),
    ]
    for group in optimizer.param_groups:
        group["lr"] = 0.2 * group["lr_scale"]
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(3):
        optimizer.step()
    for name, parameter in net.named_parameters():
        kept = {"0.weight": 0.98, "2.weight": 0.99}.get(name, 1.0) ** 3
        torch.testing.assert_close(parameter.detach(), before[name] * kept, rtol=1e-12, atol=0)


def test_decay_groups_leave_out_frozen_parameters_and_name_tied_ones_once():
    net = nn.ModuleDict({"words": nn.Embedding(3, 2), "head": nn.Linear(2, 3)})
    net["head"].weight = net["words"].weight
    net["head"].bias.requires_grad_(False)
    (group,) = decay_groups(net, spared=("bias",))
    assert [id(parameter) for parameter in group["params"]] == [id(net["words"].weight)]
    assert "weight_decay" not in group


def test_decay_groups_spare_vectors_if_no_names_are_given():
    net = nn.ModuleDict({"body": nn.Linear(3, 2), "head": nn.Linear(2, 3)})
    groups = decay_groups(net, lr_scales={"body.": 1.0, "": 4.0})
    found = {id(value): (group["lr_scale"], group.get("weight_decay")) for group in groups for value in group["params"]}
    assert [found[id(value)] for value in net.parameters()] == [(1.0, None), (1.0, 0.0), (4.0, None), (4.0, 0.0)]


def test_parameters_without_gradient_stay_and_get_no_state():
    net = model()
    put_gradients(net, 0)
    still = net[0].weight
    still.grad, before = None, still.detach().clone()
    optimizer = BertAdam(net.parameters(), 0.1, weight_decay=0.5)
    optimizer.step()
    assert torch.equal(still.detach(), before)
    assert still not in optimizer.state
    assert len(optimizer.state) == 5


def test_a_state_dict_continues_bit_by_bit():
    one = model(torch.float32)
    first = BertAdam(one.parameters(), 0.05)
    for step in range(3):
        put_gradients(one, step)
        first.step()
    other = copy.deepcopy(one)
    second = BertAdam(other.parameters())
    second.load_state_dict(copy.deepcopy(first.state_dict()))  # torch takes over the tensors themselves
    for net, optimizer in ((one, first), (other, second)):
        put_gradients(net, 9)
        optimizer.step()
    for found, expected in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(found, expected)


def test_closure_is_evaluated_with_gradients():
    parameter = nn.Parameter(torch.ones(2))

    def closure() -> float:
        loss = parameter.square().sum()
        loss.backward()
        return loss.item()

    optimizer = BertAdam([parameter], 0.1)
    assert optimizer.step(closure) == 2
    assert (parameter < 1).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lr": -1.0}, "must not be negative"),
        ({"weight_decay": -0.1}, "must not be negative"),
        ({"betas": (0.9, 1.0)}, "below 1"),
        ({"max_grad_norm": 0.0}, "must be positive"),
    ],
)
def test_numbers_out_of_range(wrong, message):
    with pytest.raises(ValueError, match=message):
        BertAdam(model().parameters(), **wrong)


def sharded_steps(ranks):
    """Return the weights after three steps on shards."""
    net = model()
    fully_shard(net, mesh=init_device_mesh("cpu", (ranks.size,)))
    optimizer = BertAdam(net.parameters(), 0.05, max_grad_norm=0.5)
    for step in range(3):
        whole = model()
        put_gradients(whole, step, 2.0)
        for mine, other in zip(net.parameters(), whole.parameters(), strict=True):
            mine.grad = distribute_tensor(other.grad, mine.device_mesh, mine.placements)
        optimizer.step()
    return {name: parameter.full_tensor().detach() for name, parameter in net.named_parameters()}


def test_sharded_weights_take_the_steps_of_whole_ones():
    """Over two processes every tensor is clipped by its whole norm, not by that of a shard."""
    found = run_ranks(sharded_steps)[0].result
    net = model()
    optimizer = BertAdam(net.parameters(), 0.05, max_grad_norm=0.5)
    for step in range(3):
        put_gradients(net, step, 2.0)
        optimizer.step()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(found[name], parameter.detach(), rtol=1e-7, atol=1e-9)
