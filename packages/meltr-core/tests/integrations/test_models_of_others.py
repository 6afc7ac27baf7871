"""`.grad` in steps with an outer step, of models that others wrap: LoRA by PEFT, and compiled ones."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import integration_cases as cases
from meltr import Bilevel, ForwardMode, OneSidedDifference, PerTask


def check_steps(model: nn.Module, compute, *, estimator=None, steps: int = 4, count: int = 3) -> Bilevel:
    """Train for a few steps, with an outer step at every one after the first.

    Fail unless ``.grad`` is that of the weighted sum by a backward pass of its own, and frozen parameters have none.

    Args:
        model: The model.
        compute: Maps a model and a batch to its losses.
        estimator: As in `Bilevel`.
        steps: Number of steps.
        count: Number of losses.
    """
    beside = copy.deepcopy(model)
    combiner = cases.combiner(count)
    bilevel = Bilevel(model, combiner, cases.outer(combiner), every=1, estimator=estimator)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    for number, batch in enumerate(cases.batches(steps)):
        beside.load_state_dict(model.state_dict())
        result = bilevel.backward(lambda batch=batch: compute(model, *batch))
        assert (result.outer is not None) == (number > 0)
        losses = compute(beside, *batch)
        sum(result.weights[name] * loss for name, loss in losses.items()).backward()
        for (name, parameter), other in zip(model.named_parameters(), beside.parameters(), strict=True):
            assert (parameter.grad is None) == (other.grad is None) == (not parameter.requires_grad), name
            if parameter.grad is not None:
                torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-5, atol=1e-7, msg=name)
        optimizer.step()
        optimizer.zero_grad()
        beside.zero_grad()
    return bilevel


def exact_alignment(model: nn.Module, compute, batch) -> torch.Tensor:
    """Return g = J v with v the gradient of the primary loss, by dense rows; shape (T+1,)."""
    losses = compute(model, *batch)
    w = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rows = [
        torch.cat([part.flatten() for part in torch.autograd.grad(losses[name], w, retain_graph=True)])
        for name in cases.NAMES
    ]
    return torch.stack(rows).double() @ rows[0].double()


def lora(base: nn.Module) -> nn.Module:
    """Return the model with LoRA in its first and last layer, whose B is not 0 as it is at the start."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(3)
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["layers.0", "layers.6"], lora_dropout=0.0))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    return model


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("estimator", [None, ForwardMode, PerTask, OneSidedDifference])
def test_lora(count, estimator):
    """Only the adapters train; w is what PEFT left trainable."""
    model = lora(cases.net())
    assert 0 < sum(p.requires_grad for p in model.parameters()) < len(list(model.parameters()))

    def compute(of, x, y):
        return cases.losses(of, x, y, count)

    bilevel = check_steps(model, compute, estimator=None if estimator is None else estimator(), count=count)
    assert bilevel.outer_steps == 3
    assert all("lora_" in name for name, p in model.named_parameters() if p.requires_grad)


def test_the_alignment_of_lora_is_that_of_its_adapters():
    model = lora(cases.net()).eval()
    combiner = cases.combiner()
    bilevel = Bilevel(model, combiner, cases.outer(combiner), every=1, gamma=0.0, estimator=ForwardMode())
    bilevel.count_from(1, 0)
    (batch,) = cases.batches(1)
    expected = exact_alignment(model, cases.losses, batch)
    found = bilevel.backward(lambda: cases.losses(model, *batch)).outer
    torch.testing.assert_close(found.products, expected, rtol=1e-4, atol=1e-6)


def test_layers_that_are_added_and_unfrozen_later():
    """LoRA put into a model that is already being trained by a `Bilevel`."""
    peft = pytest.importorskip("peft")
    base = cases.net()
    combiner = cases.combiner()
    bilevel = Bilevel(base, combiner, cases.outer(combiner), every=1)
    (one, two) = cases.batches(2)
    bilevel.backward(lambda: cases.losses(base, *one))
    base.zero_grad()
    model = peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["layers.0"]), base)
    beside = copy.deepcopy(model)
    result = bilevel.backward(lambda: cases.losses(model, *two))
    assert result.outer is not None
    sum(result.weights[name] * loss for name, loss in cases.losses(beside, *two).items()).backward()
    pairs = zip(model.named_parameters(), beside.parameters(), strict=True)
    compared = [(name, p.grad, q.grad) for (name, p), q in pairs if p.requires_grad]
    assert any("lora_B" in name for name, _, _ in compared)
    for name, found, expected in compared:
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled(count, backend):
    """The model, or the function of the losses; `.grad` is that of the model without a compiler."""
    torch._dynamo.reset()
    model = cases.net()
    Bilevel(model, of := cases.combiner(), cases.outer(of))  # so that graphs can be kept, see Bilevel
    compiled = torch.compile(model, backend=backend)

    def compute(of, x, y):
        return cases.losses(compiled if of is model else of, x, y, count)

    assert check_steps(model, compute, count=count).outer_steps == 3


@pytest.mark.slow
def test_compiled_lora():
    torch._dynamo.reset()
    model = lora(cases.net())
    compiled = torch.compile(model, backend="aot_eager")

    def compute(of, x, y):
        return cases.losses(compiled if of is model else of, x, y)

    assert check_steps(model, compute).outer_steps == 3


@pytest.mark.slow
def test_a_compiled_function_of_the_losses_is_not_compiled_again_at_every_evaluation():
    """The search for modules beside the model hooks into all modules, by which compiled functions are told apart."""
    torch._dynamo.reset()
    model, (batch,), graphs = cases.net(), cases.batches(1), []

    def backend(module, inputs):
        graphs.append(module)
        return module.forward

    compute = torch.compile(lambda: cases.losses(model, *batch), backend=backend)
    m = cases.combiner()
    bilevel = Bilevel(model, m, cases.outer(m), every=1, estimator=OneSidedDifference())
    for _ in range(5):
        bilevel.backward(compute)
    assert bilevel.outer_steps == 4
    assert len(graphs) <= 4  # with and without a graph, and each once while modules are looked for
