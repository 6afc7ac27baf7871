"""The losses against closed forms and loops, their draws, and every way to the hypergradient."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from meltr import Bilevel, CentralDifference, DoubleBackward, ForwardMode, LossTransformer, PerTask, Setup
from meltr_alpro.losses.draws import black_outside, draw, draw_region, wrong_pairs
from meltr_alpro.losses.tasks import LOSSES, Batch, LossSettings, Passes, soft_cross_entropy, task_losses
from meltr_alpro.model.config import BASE, TINY

ALL = LossSettings(pem_threshold=0.0)


def drawn(batch, config, seed=1):
    return draw(config, batch.ids, generator=torch.Generator().manual_seed(seed))


def losses_of(model, batch, *wanted, generator=None):
    draws = draw(model.config, batch.ids, generator=generator or torch.Generator().manual_seed(1))
    return task_losses(model, batch, draws, wanted=wanted or LOSSES, settings=ALL)


def test_the_contrast_is_the_mean_of_two_softmax_losses(make_model, config, batch):
    passes = Passes(make_model().eval(), batch, drawn(batch, config), ALL)
    videos, texts = (part.tolist() for part in passes.vectors)
    s = [[sum(a * b for a, b in zip(v, t, strict=True)) / config.temperature for t in texts] for v in videos]
    total = 0.0
    for i in range(4):
        total += math.log(sum(math.exp(s[i][j]) for j in range(4))) - s[i][i]
        total += math.log(sum(math.exp(s[j][i]) for j in range(4))) - s[i][i]
    assert passes.contrast().item() == pytest.approx(total / 8, rel=1e-5)


def test_two_processes_have_the_contrast_of_the_joint_batch(make_model, config, batch, monkeypatch):
    """Each compares its own half with everything; what they gather comes from a model in one process."""
    model = make_model().eval()
    whole = Passes(model, batch, drawn(batch, config), ALL)
    halves = []
    for rank in (0, 1):
        rows = slice(2 * rank, 2 * rank + 2)
        part = Batch(batch.video[rows], batch.ids[rows])
        gathered = iter(whole.vectors)
        monkeypatch.setattr("meltr_alpro.losses.tasks.gather", lambda own, of=gathered: next(of))
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        halves.append(Passes(model, part, drawn(part, config), ALL).contrast())
        own = Passes(model, part, drawn(part, config), LossSettings(negatives="own")).contrast()
        assert own < halves[-1], "fewer to compare with"
    monkeypatch.undo()
    torch.testing.assert_close(sum(halves) / 2, whole.contrast())


def test_matching_scores_each_pair_alone(make_model, config, batch):
    model = make_model().eval()
    passes = Passes(model, batch, drawn(batch, config), ALL)
    logits, labels = passes.matching_logits()
    videos, texts = (part.tolist() for part in passes._wrong())
    pairs = [(i, i) for i in range(4)] + list(zip(range(4), videos, strict=True))
    pairs += list(zip(texts, range(4), strict=True))
    assert all((text == clip) == (row < 4) for row, (text, clip) in enumerate(pairs))
    assert labels.tolist() == [1] * 4 + [0] * 8
    for row, (text, clip) in enumerate(pairs):
        ids = batch.ids[text : text + 1]
        video = model.encode_video(batch.video[clip : clip + 1])
        alone = model.itm_head(model.fuse(model.encode_text(ids), video, ids)[:, 0])[0]
        torch.testing.assert_close(logits[row], alone, atol=1e-5, rtol=1e-5)
    assert passes.matching().item() == pytest.approx(F.cross_entropy(logits, labels).item())


def test_a_batch_of_one_has_no_wrong_pairs(make_model, batch):
    one = Batch(batch.video[:1], batch.ids[:1], batch.answer[:1])
    losses = losses_of(make_model(), one)
    assert losses["vtc"].item() == 0
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_wrong_pairs_are_chosen_with_the_softmax_of_the_others():
    scores = torch.tensor([[9.0, 0.0, math.log(3)], [1.0, -5.0, 1.0], [0.0, 30.0, 2.0]])
    chances = (torch.arange(1000) + 0.5) / 1000
    found = torch.stack([wrong_pairs(scores, chance.expand(3)) for chance in chances])
    shares = [[(found[:, row] == column).float().mean().item() for column in range(3)] for row in range(3)]
    for row, expected in zip(shares, [[0, 0.25, 0.75], [0.5, 0, 0.5], [0, 1, 0]], strict=True):
        assert row == pytest.approx(expected, abs=1e-3)
    edge = wrong_pairs(torch.zeros(2, 2), torch.ones(2))
    assert edge.tolist() == [1, 0], "never the right one, whatever rounding does"


def test_masked_texts_keep_their_padding_and_see_the_whole_video(make_model, config, batch):
    model = make_model().eval()
    passes = Passes(model, batch, drawn(batch, config), ALL)
    hidden, labels = passes.draws.masked
    counts = labels != -100
    assert counts.any()
    assert not (counts & ((batch.ids == 0) | (batch.ids == 101) | (batch.ids == 102))).any()
    total = 0.0
    for row, column in counts.nonzero().tolist():
        length = int((batch.ids[row] != 0).sum())
        ids, video = hidden[row : row + 1, :length], model.encode_video(batch.video[row : row + 1])
        everything = torch.ones_like(ids, dtype=torch.bool)
        state = model.text_encoder(ids, everything, video, model.encode_text(ids, everything))[0, column]
        logits = model.text_encoder.embeddings.word_embeddings.weight @ model.mlm_head.transform(state)
        total -= (logits + model.mlm_head.bias).log_softmax(0)[batch.ids[row, column]].item()
    assert passes.masked_text().item() == pytest.approx(total / int(counts.sum()), rel=1e-4)


def test_entities_come_from_the_patches_inside(make_model, config, batch):
    model = make_model().eval()
    draws = drawn(batch, config)
    passes = Passes(model, batch, draws, ALL)
    for row in range(4):
        states = passes.own[row, batch.ids.shape[1] + 1 :].view(3, 3, -1)
        inside = [states[i, j] for i in range(3) for j in range(3) if draws.region[row, i, j]]
        expected = model.mpm_head(torch.stack(inside).mean(0))
        torch.testing.assert_close(passes.entity_logits()[row], expected, atol=1e-5, rtol=1e-5)
    crop = black_outside(batch.video, draws.region, 16)
    for row in range(4):
        for i in range(3):
            for j in range(3):
                square = (slice(None), slice(None), slice(16 * i, 16 * i + 16), slice(16 * j, 16 * j + 16))
                kept = batch.video[row][square] if draws.region[row, i, j] else torch.zeros(1, dtype=torch.uint8)
                assert torch.equal(crop[row][square], kept.expand(2, 3, 16, 16))
    likely = model.prompter(crop)
    assert passes.entities().item() == pytest.approx(F.cross_entropy(passes.entity_logits(), likely).item(), rel=1e-5)


def test_which_regions_count():
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    likely = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.1, 0.15, 0.6, 0.15], [0.26, 0.24, 0.25, 0.25]])
    each = [-(likely[row] * logits[row].log_softmax(0)).sum().item() for row in range(3)]

    def found(**settings):
        return soft_cross_entropy(logits, likely, settings=LossSettings(**settings)).item()

    assert found(pem_threshold=0.3) == pytest.approx((each[0] + each[1]) / 2)
    assert found(pem_threshold=0.0) == pytest.approx(sum(each) / 3)
    assert found(pem_ignore="released") == pytest.approx(each[1])
    assert found(pem_threshold=0.9) == 0


def test_regions_are_rectangles_of_the_right_size():
    regions = draw_region(BASE, 4000, generator=torch.Generator().manual_seed(0))
    assert regions.shape == (4000, 14, 14)
    heights, widths = regions.any(2).sum(1), regions.any(1).sum(1)
    assert torch.equal(heights * widths, regions.sum((1, 2))), "rectangles"
    whole = 14 * 14
    # A side is rounded down by less than one patch, and the area before that is 0.3 to 0.5 of the frame.
    assert ((heights + 1) * (widths + 1) > 0.3 * whole).all()
    assert (heights * widths <= 0.5 * whole).all()
    assert (heights + 1 > 0.3 * widths).all()
    assert (heights < 3.34 * (widths + 1)).all()
    tops = regions.any(2).float().argmax(1)
    assert tops.min() == 0
    assert (tops + heights).max() in (13, 14)
    assert (heights < 14).all()
    small = draw_region(replace(TINY, image_size=16), 10, generator=torch.Generator().manual_seed(0))
    assert small.all(), "one patch is the smallest region"


def test_draws_are_replayed_and_the_same_for_every_loss(make_model, batch):
    model = make_model().eval()
    first = {name: loss.item() for name, loss in losses_of(model, batch).items()}
    assert tuple(first) == LOSSES
    for name in LOSSES:
        assert losses_of(model, batch, name)[name].item() == pytest.approx(first[name], rel=1e-5)
    other = losses_of(model, batch, generator=torch.Generator().manual_seed(2))
    assert {name for name in LOSSES if other[name].item() != first[name]} == {"vtm", "mlm", "pem"}


def test_every_parameter_is_trained_by_the_five_losses(make_model, batch):
    model = make_model().train()
    sum(losses_of(model, batch).values()).backward()
    named = dict(model.named_parameters())
    assert {n for n, p in named.items() if p.grad is None} == {n for n in named if n.startswith("prompter.")}


def test_what_a_loss_needs_is_named(make_model, config, batch):
    bare = make_model(heads=())
    for name, head in (("answer", "classifier"), ("vtm", "itm_head"), ("mlm", "mlm_head"), ("pem", "mpm_head")):
        with pytest.raises(ValueError, match=f"the loss '{name}' needs {head}"):
            losses_of(bare, batch, name)
    with pytest.raises(ValueError, match="the batch has none"):
        losses_of(make_model(), Batch(batch.video, batch.ids), "answer")
    with pytest.raises(ValueError, match="choose from"):
        losses_of(bare, batch, "mvm")


def test_bfloat16_autocast(make_model, config, batch):
    model = make_model(config.without_noise())
    exact = {name: loss.item() for name, loss in losses_of(model, batch).items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = losses_of(model, batch)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32, name
        assert loss.item() == pytest.approx(exact[name], abs=0.05 * max(1, exact[name])), name
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


class Recorder(torch.optim.SGD):
    """An outer optimiser that keeps the gradient and moves nothing."""

    def __init__(self, parameters) -> None:
        super().__init__(parameters, lr=0.0)

    def step(self, closure=None):
        self.seen = torch.cat([p.grad.flatten() for g in self.param_groups for p in g["params"] if p.grad is not None])


def outer_gradient(model, batch, estimator) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    m = LossTransformer(LOSSES, width=32, feedforward=32, scale_hidden=32, start="random")
    recorder, generator = Recorder(m.parameters()), torch.Generator().manual_seed(5)
    bilevel = Bilevel(model, m, recorder, estimator=estimator(), setup=Setup(generators=[generator]))
    torch.manual_seed(5)
    result = bilevel.backward(lambda: losses_of(model, batch, generator=generator), outer=True)
    return recorder.seen, result.outer.products


def test_every_way_to_the_hypergradient_agrees(make_model, batch):
    """With dropout, stochastic depth, masks, wrong pairs and regions, all replayed."""
    model = make_model().train()
    expected, g = outer_gradient(copy.deepcopy(model), batch, DoubleBackward)
    assert g.norm() > 0
    for estimator, tolerance in {ForwardMode: 1e-4, PerTask: 1e-4, CentralDifference: 5e-3}.items():
        mine = copy.deepcopy(model)
        found, products = outer_gradient(mine, batch, estimator)
        assert (products - g).norm() <= tolerance * g.norm(), estimator
        assert (found - expected).norm() <= tolerance * expected.norm(), estimator
        for (name, weight), before in zip(mine.named_parameters(), model.parameters(), strict=True):
            assert torch.equal(weight, before), (estimator, name)
