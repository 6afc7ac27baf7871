"""An outer step that stops below the heads or the last blocks: the same as the whole one with J cut there."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bilevel_cases import ESTIMATORS, Recorder, estimator_of, flat, in_turn, scheme_of
from dense_reference import Dense, series
from meltr import Bilevel, LossTransformer, Scope
from meltr.errors import UserError
from scope_cases import MODELS, Again, Block, EncoderDecoder, Parts, Tied, Towers, Vit, names

GAMMA = 0.3
KINDS = ["heads", "last_block"]


def build(kind: type) -> tuple[nn.Module, LossTransformer]:
    torch.manual_seed(2)
    model = kind().double().train()
    torch.manual_seed(4)
    m = LossTransformer(4, width=8, heads=2, feedforward=8, scale_hidden=16, start="random").double()
    with torch.no_grad():
        m.fc1.weight *= 3
    return model, m


def trainable(model: nn.Module) -> list[torch.Tensor]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def expected_parameters(model: nn.Module, kind: str) -> list[torch.Tensor]:
    wanted = getattr(model, kind)()
    return [parameter for name, parameter in model.named_parameters() if name in wanted]


def outer_steps(model, m, estimator: str, count: int = 2, *, compute=None, **settings):
    """Outer steps at the same weights and seed; modules below the scope are skipped from the second one on."""
    recorder = Recorder(m.parameters())
    bilevel = Bilevel(model, m, recorder, estimator=estimator_of(estimator), gamma=GAMMA, **settings)
    for _ in range(count):
        model.zero_grad()
        torch.manual_seed(7)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            outer = bilevel.backward(compute or model.losses, outer=True).outer
        yield outer.products, flat(recorder.seen)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", MODELS)
def test_scope_holds_the_parameters_expected_by_hand(architecture, kind):
    model, _ = build(architecture)
    scope = Scope(kind).find(model, trainable(model), model.losses)
    found = [name for name, p in model.named_parameters() if any(p is each for each in scope.parameters)]
    assert found == [name for name, _ in model.named_parameters() if name in getattr(model, kind)()]


LAST_BLOCKS = [
    (Vit, 2, ["blocks.1.", "blocks.2.", "head."]),
    (Vit, 3, ["blocks.", "head."]),
    (Vit, 9, ["blocks.", "head."]),
    (Towers, 2, ["text.layers.", "text.out.", "image.layers.", "image.out.", "temperature"]),
    (EncoderDecoder, 2, ["decoder.layers.", "out."]),
    (EncoderDecoder, 3, ["decoder.layers.", "out.", "encoder.layers.1."]),
    (EncoderDecoder, 4, ["decoder.layers.", "out.", "encoder.layers."]),
    (Again, 2, ["blocks.1.mlp.1.", "blocks.2.mlp.1.", "head."]),
]
"""Model, number of last blocks, where the parameters in scope lie."""


@pytest.mark.parametrize(("architecture", "count", "places"), LAST_BLOCKS)
def test_several_last_blocks(architecture, count, places):
    """The parameters expected by hand, the g of the Jacobian cut there, and no evaluation of the blocks below."""
    model, m = build(architecture)
    scope = Scope("last_block", blocks=count).find(model, trainable(model), model.losses)
    expected = {name for place in places for name in names(model, place)}
    assert {n for n, p in model.named_parameters() if any(p is each for each in scope.parameters)} == expected
    dense = Dense(model, m, gamma=GAMMA, parameters=scope.parameters)
    g = dense.j() @ dense.v()
    steps = outer_steps(model, m, "forward", scope=Scope("last_block", blocks=count))
    torch.testing.assert_close(next(steps)[0], g, rtol=1e-9, atol=1e-12)
    below = [b for b in model.modules() if isinstance(b, Block) and not {id(p) for p in b.mlp[1].parameters()} & {
        id(p) for p in scope.parameters}]  # fmt: skip
    start = [block.calls for block in below]
    model.losses()
    once = [block.calls - before for block, before in zip(below, start, strict=True)]
    start = [block.calls for block in below]
    torch.testing.assert_close(next(steps)[0], g, rtol=1e-9, atol=1e-12)
    assert [block.calls - before for block, before in zip(below, start, strict=True)] == once


def test_no_block_is_no_number_of_blocks():
    with pytest.raises(ValueError, match="blocks of a scope must be at least 1, got 0"):
        Scope("last_block", blocks=0)


@pytest.mark.parametrize(("architecture", "estimator", "kind"), in_turn(MODELS, ESTIMATORS, KINDS))
def test_g_and_phi_s_gradient_are_those_of_the_jacobian_cut_there(architecture, estimator, kind):
    model, m = build(architecture)
    dense = Dense(model, m, gamma=GAMMA, parameters=expected_parameters(model, kind))
    g, expected = dense.j() @ dense.v(), dense.phi_gradient(dense.v())
    tolerance = 1e-7 if estimator == "difference" else 1e-10  # the ladder of steps ends at 1e-5
    before = copy.deepcopy(model.state_dict())
    for products, phi in outer_steps(model, m, estimator, scope=Scope(kind)):
        assert (products - g).norm() <= tolerance * g.norm()
        assert (phi - expected).norm() <= tolerance * expected.norm()
        model.load_state_dict(before)


@pytest.mark.parametrize(
    ("architecture", "scheme", "hessian"), in_turn(MODELS, ["aid-fp", "itd"], ["difference", "double_backward"])
)
def test_schemes_that_evaluate_again_stop_there_too(architecture, scheme, hessian):
    model, m = build(architecture)
    dense = Dense(model, m, gamma=GAMMA, parameters=expected_parameters(model, "last_block"))
    q = 0.5 * dense.v(dense.w - 0.5 * dense.u()) if scheme == "itd" else series(dense.h(), dense.v(), 0.5, 2)
    expected = dense.phi_gradient(q)
    tolerance = 1e-5 if scheme == "aid-fp" and hessian == "difference" else 1e-10
    chosen = scheme_of(scheme, terms=2, step=0.5, hessian=hessian)
    for _, phi in outer_steps(model, m, "forward", scope=Scope("last_block"), scheme=chosen):
        assert (phi - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize(
    ("architecture", "estimator", "scheme"), in_turn(MODELS, ["forward", "difference"], ["aid-fp-lite", "itd"])
)
def test_modules_below_are_evaluated_once(architecture, estimator, scheme):
    """Only in the forward that training needs anyway; the blocks in scope are evaluated again."""
    model, m = build(architecture)
    blocks = [module for module in model.modules() if isinstance(module, Block)]

    def counts() -> list[int]:
        before = [block.calls for block in blocks]
        model.losses()
        return [block.calls - one for block, one in zip(blocks, before, strict=True)]

    once = counts()
    chosen = scheme_of(scheme, step=0.1)
    steps = outer_steps(model, m, estimator, scope=Scope("last_block"), scheme=chosen)
    next(steps)  # finds the scope
    before = [block.calls for block in blocks]
    next(steps)
    for block, start, one in zip(blocks, before, once, strict=True):
        if any(block is each for each in model.below()):
            assert block.calls - start == one
        elif block is blocks[-1]:
            assert block.calls - start > one


@pytest.mark.parametrize("architecture", [Vit, Parts, Tied])
def test_only_weights_in_scope_move_while_losses_are_evaluated(architecture):
    model, m = build(architecture)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    moved: set[str] = set()

    def losses():
        moved.update(name for name, p in model.named_parameters() if not torch.equal(p.detach(), start[name]))
        return model.losses()

    for _ in outer_steps(model, m, "difference", compute=losses, scope=Scope("last_block")):
        pass
    assert moved == set(model.last_block())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, start[name])


@pytest.mark.parametrize("estimator", ["forward", "per_task"])
def test_the_inner_gradient_is_still_the_whole_one(estimator):
    """Also for two losses, where the rows of J are kept for the parameters in scope."""
    model, _ = build(Vit)
    m = LossTransformer(2, width=8, heads=2, start="random").double()

    def losses():
        return list(model.losses().values())[:2]

    torch.manual_seed(7)
    m(torch.stack(losses())).backward()
    expected = flat(p.grad for p in model.parameters())
    for _ in outer_steps(model, m, estimator, compute=losses, scope=Scope("heads")):
        torch.testing.assert_close(flat(p.grad for p in model.parameters()), expected, rtol=1e-12, atol=1e-14)


def test_frozen_blocks_leave_the_heads():
    model, m = build(Vit)
    model.blocks.requires_grad_(False)
    for kind in KINDS:
        scope = Scope(kind).find(model, trainable(model), model.losses)
        assert [id(p) for p in scope.parameters] == [id(p) for p in model.head.parameters()]
    dense = Dense(model, m, gamma=GAMMA, parameters=scope.parameters)
    g = dense.j() @ dense.v()
    for products, _ in outer_steps(model, m, "forward", scope=Scope("last_block")):
        torch.testing.assert_close(products, g, rtol=1e-10, atol=1e-13)


def test_blocks_may_be_named():
    model, _ = build(Vit)
    lines: list[str] = []
    m = LossTransformer(4, width=8, heads=2, start="random").double()
    bilevel = Bilevel(
        model, m, Recorder(m.parameters()), scope=Scope("last_block", modules=[*model.blocks[:2]]), log=lines.append
    )
    bilevel.backward(model.losses, outer=True)
    count = sum(p.numel() for name in ("blocks.1.", "blocks.2.", "head.") for n, p in model.named_parameters()
                if n in names(model, name))  # fmt: skip
    total = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert lines[0] == f"scope: last_block ({count:,} parameters, {count / total:.1%})"


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))

    def losses(self):
        found = self.layers(torch.ones(2, 3))
        return [found.mean(), found.square().mean()]


class Headless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block() for _ in range(2)))

    def losses(self):
        found = self.blocks(torch.ones(2, 4))
        return [found.mean(), F.softplus(found).mean()]


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (Plain, "heads", ["scope=heads: Plain has no repeated blocks", "scope=full", "model_blocks"]),
        (Plain, "last_block", ["scope=last_block: Plain has no repeated blocks"]),
        (Headless, "heads", ["scope=heads: no trainable parameter of Headless", "scope=full"]),
        (lambda: torch.compile(Headless(), backend="eager"), "last_block", ["compiled", "scope=full"]),
    ],
    ids=["no blocks, heads", "no blocks, last block", "nothing in scope", "compiled"],
)
def test_models_that_cannot_be_cut_are_named(make, kind, words):
    model = make()
    m = LossTransformer(2, width=8, heads=2, start="random")
    bilevel = Bilevel(model, m, Recorder(m.parameters()), scope=Scope(kind))
    with pytest.raises(UserError) as raised:
        bilevel.backward(model.losses, outer=True)
    assert all(word in str(raised.value) for word in words), raised.value
