"""The model as the engine uses it: every way to the hypergradient, low precision, checkpointing, compilation."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from meltr import Bilevel, CentralDifference, DoubleBackward, ForwardMode, LossTransformer, PerTask, Setup
from meltr.blocks import find_blocks
from meltr.engine.wrapping import checkpoint_blocks
from meltr_violet.losses.tasks import LossSettings, draw_batch_masks, task_losses
from meltr_violet.model.config import TINY
from meltr_violet.model.video import VideoSwin
from meltr_violet.model.violet import Violet

LOSSES = ("answer", "vtm", "mtm", "mvm")
NOISY = replace(TINY, dropout=0.1, stochastic_depth=0.2)


def make(config=NOISY, *, choices: bool = False) -> Violet:
    torch.manual_seed(0)
    head = "choice" if choices else "answer"
    return Violet(config, heads=("vtm", "mtm", "mvm", head), answers=5, answer_dropout=config.dropout).train()


def losses_of(model, batch, generator=None, settings=None):
    masks = draw_batch_masks(batch, TINY.cell, settings=settings, generator=generator)
    return task_losses(model, batch, masks, wanted=LOSSES, settings=settings)


def gradients_of(model, batch, **settings) -> list[torch.Tensor]:
    torch.manual_seed(3)
    model.zero_grad()
    found = losses_of(model, batch, torch.Generator().manual_seed(1), **settings)
    sum(found.values()).backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


class Recorder(torch.optim.SGD):
    """An outer optimiser that keeps the gradient and moves nothing."""

    def __init__(self, parameters) -> None:
        super().__init__(parameters, lr=0.0)

    def step(self, closure=None):
        self.seen = torch.cat([p.grad.flatten() for g in self.param_groups for p in g["params"] if p.grad is not None])


def outer_gradient(model, batch, estimator, settings=None) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    m = LossTransformer(LOSSES, width=32, feedforward=32, scale_hidden=32, start="random").to(model.video.emb_pos.dtype)
    recorder, generator = Recorder(m.parameters()), torch.Generator().manual_seed(5)
    bilevel = Bilevel(model, m, recorder, estimator=estimator(), setup=Setup(generators=[generator]))
    torch.manual_seed(5)
    result = bilevel.backward(lambda: losses_of(model, batch, generator, settings), outer=True)
    return recorder.seen, result.outer.products


@pytest.mark.parametrize("choices", [0, 3])
def test_every_way_to_the_hypergradient_agrees(tiny_batch, choices):
    """With dropout, stochastic depth and masks, all replayed; fused attention where there is no second order."""
    batch = tiny_batch(3, choices=choices)
    model = make(choices=bool(choices))
    settings = LossSettings(pairs_per_pass=4)
    expected, g = outer_gradient(copy.deepcopy(model), batch, DoubleBackward, settings)
    for estimator, tolerance in {ForwardMode: 1e-4, PerTask: 1e-4, CentralDifference: 5e-3}.items():
        mine = copy.deepcopy(model)
        found, products = outer_gradient(mine, batch, estimator, settings)
        assert (products - g).norm() <= tolerance * g.norm(), estimator
        assert (found - expected).norm() <= tolerance * expected.norm(), estimator
        for (name, weight), before in zip(mine.named_parameters(), model.parameters(), strict=True):
            assert torch.equal(weight, before), (estimator, name)


def test_eager_attention_equals_fused(tiny_batch):
    batch = tiny_batch()
    fused = make(TINY).double()
    eager = make(replace(TINY, attention="eager")).double()
    eager.load_state_dict(fused.state_dict())
    for one, other in zip(gradients_of(fused, batch), gradients_of(eager, batch), strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize(
    ("frames", "height", "width"), [(1, 32, 64), (2, 96, 96), (3, 100, 36), (9, 64, 96), (17, 32, 32)]
)
def test_fused_windows_equal_those_of_torchvision(frames, height, width):
    """Windows that shrink, are padded or shifted, in space and time; outputs and gradients of all parameters."""
    config = replace(TINY, swin_depths=(2, 2, 2, 2), window=(4, 3, 3))
    fused, eager = VideoSwin(config).double(), VideoSwin(replace(config, attention="eager")).double()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in fused.named_parameters():
            if name.endswith("table"):
                parameter.normal_()
    eager.load_state_dict(fused.state_dict())
    clip, found = torch.randn(2, 3, frames, height, width, dtype=torch.float64), []
    for swin in (fused, eager):
        out = swin(clip)
        found.append([out, *torch.autograd.grad(out.square().sum(), list(swin.parameters()))])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-8, rtol=1e-7)


def test_blocks_are_among_those_that_the_engine_finds():
    model = make()
    found = {id(block) for block in find_blocks(model)}
    assert {id(block) for block in model.blocks()} < found  # the engine also takes the patch mergings
    assert len(model.blocks()) == sum(TINY.swin_depths) + TINY.layers


def test_checkpointing_gives_the_same_gradients_with_noise(tiny_batch):
    batch = tiny_batch()
    plain, saving = make(), make()
    checkpoint_blocks(saving.blocks())
    for one, other in zip(gradients_of(plain, batch), gradients_of(saving, batch), strict=True):
        assert torch.equal(one, other)


def test_bfloat16_autocast(tiny_batch):
    batch, model = tiny_batch(), make(TINY)
    exact = [loss.detach() for loss in losses_of(model, batch, torch.Generator().manual_seed(1)).values()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = losses_of(model, batch, torch.Generator().manual_seed(1))
    for (name, loss), value in zip(losses.items(), exact, strict=True):
        assert loss.dtype == torch.float32, name
        assert (loss.detach() - value).abs().item() < 0.03 * float(value), name
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_every_parameter_is_trained_by_the_four_losses(tiny_batch):
    model = make()
    gradients_of(model, tiny_batch())
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_training_learns_the_tiny_batch(tiny_batch):
    batch, model = tiny_batch(2), make(TINY)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    masks = draw_batch_masks(batch, TINY.cell, generator=torch.Generator().manual_seed(1))
    curve = []
    for _ in range(20):
        losses = task_losses(model, batch, masks, wanted=LOSSES)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        curve.append({name: float(loss.detach()) for name, loss in losses.items()})
    assert all(curve[-1][name] < 0.5 * curve[0][name] for name in ("mtm", "mvm"))
    assert curve[-1]["answer"] < curve[0]["answer"]


def test_too_many_frames_or_cells_are_named(tiny_batch):
    model = make(replace(TINY, max_frames=1))
    with pytest.raises(ValueError, match="2 frames of 3x3 cells: at most 1 frames"):
        model.encode_video(tiny_batch().frames)
    with pytest.raises(ValueError, match="at most 6 frames of 8 cells"):
        make(replace(TINY, positions=9)).encode_video(tiny_batch().frames)


def test_config_refuses_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="width=100 must be 96"):
        replace(TINY, width=100)
    with pytest.raises(ValueError, match="not a multiple of heads=5"):
        replace(TINY, heads=5)
    with pytest.raises(ValueError, match="differ in length"):
        replace(TINY, swin_heads=(2, 2))


@pytest.mark.slow
def test_compiled_model_gives_the_same_gradients(tiny_batch):
    batch = tiny_batch()
    plain, compiled = make(TINY), make(TINY)
    compiled.compile(backend="aot_eager")
    for one, other in zip(gradients_of(plain, batch), gradients_of(compiled, batch), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)
    expected, _ = outer_gradient(make(TINY), batch, PerTask)
    found, _ = outer_gradient(compiled, batch, CentralDifference)
    assert (found - expected).norm() <= 5e-3 * expected.norm()
