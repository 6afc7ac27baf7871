"""``compile=true`` compiles what the losses call, and leaves the numbers of a run alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import meltr
from meltr.engine.built_run import build_run
from meltr.engine.compiling import compile_called
from meltr.plugins import discover
from meltr.settings import resolve
from meltr.torch_private import is_compiled
from places import TOY


def part() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 3), nn.Tanh())


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.unused = part(), part()

    def forward(self, x):
        return self.body(x)


class Methods(nn.Module):
    """No forward: the losses call methods, one module twice, one inside another, and a layer without parts."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.video, self.unused, self.head = part(), Whole(), part(), nn.Linear(3, 1)

    def pair(self, x):
        return self.head(self.video(self.text(x))) + self.head(self.text(x))


class Own(Methods):
    def compile(self, *arguments, **settings):
        self.video.compile(*arguments, **settings)


def compiled(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if is_compiled(module)}


def test_a_model_that_is_called_is_compiled_as_a_whole():
    model = Whole()
    assert compile_called(model, lambda: model(torch.ones(2, 3))) == [""]
    assert compiled(model) == {""}


def test_parts_that_methods_call_are_compiled():
    model = Methods()
    assert compile_called(model, lambda: model.pair(torch.ones(2, 3))) == ["text", "video"]
    assert compiled(model) == {"text", "video"}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_model_may_decide_by_itself():
    model = Own()
    assert compile_called(model, lambda: pytest.fail("not evaluated")) == ["video"]
    assert compiled(model) == {"video"}


def test_nothing_to_compile_is_an_error():
    model = Methods()
    with pytest.raises(meltr.UserError, match="would compile nothing") as caught:
        compile_called(model, lambda: model.head(torch.ones(2, 3)))
    assert "compile=false" in caught.value.hint
    assert compiled(model) == set()


def test_a_compiled_run_begins_with_the_numbers_of_any_other():
    registry, ends = discover([TOY]), []
    for wanted in (False, True):
        flags = {"device": "cpu", "train.compile": wanted, "train.batch_size": 16, "train.accumulate": 2}
        spec = resolve(registry, backbone="toy", task="classification", dataset="rings", flags=flags, plugins=[TOY])
        built = build_run(spec, registry)
        assert bool(compiled(built.model)) == wanted
        generator = built.context.generator.get_state()
        ends.append((built.model.training, torch.get_rng_state(), generator, dict(built.model.state_dict())))
    (plain, seen, own, state), (training, other, others, found) = ends
    assert plain == training
    assert torch.equal(seen, other)
    assert torch.equal(own, others)
    assert all(torch.equal(state[name], found[name]) for name in state)
