from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

import meltr_violet.losses.tasks as losses_module
from meltr.video.losses import cross_entropy
from meltr_violet.losses.masking import Masks, black_out
from meltr_violet.losses.pretraining import draw_negatives, draw_pretraining_masks, pretraining_losses
from meltr_violet.losses.tasks import RELEASED, Batch, LossSettings, draw_batch_masks, task_losses
from meltr_violet.model.config import TINY
from meltr_violet.model.scoring import answer_logits, choice_logits, score_pairs
from meltr_violet.model.violet import Violet

ALL = ("answer", "vtm", "mtm", "mvm")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Violet(TINY, heads=("vtm", "mtm", "mvm", "answer", "choice"), answers=5, answer_dropout=0.0).double()


def test_a_small_model_starts_with_all_codes_alike():
    states = torch.randn(50, TINY.width, generator=torch.Generator().manual_seed(0))
    assert Violet(TINY, heads=("mvm",)).mvm(states).std(0).mean() < 0.01
    assert Violet(replace(TINY, start="bert"), heads=("mvm",)).mvm(states).std(0).mean() > 0.1


def masks_for(batch: Batch, settings: LossSettings | None = None) -> Masks:
    generator = torch.Generator().manual_seed(7)
    return draw_batch_masks(batch, TINY.cell, settings=settings, generator=generator)


def brute_matching(model, frames, ids) -> torch.Tensor:
    """Every pair by itself, through the whole model."""
    size, loss = len(frames), 0.0
    for clip in range(size):
        scores = []
        for text in range(len(ids)):
            states = model(frames[clip : clip + 1], ids[text : text + 1])
            scores.append(model.vtm(states[:, -ids.shape[1]])[0, 0] / 0.05)
        loss = loss + F.cross_entropy(torch.stack(scores)[None], torch.tensor([clip]))
    return loss / size


def brute_masked(model, batch, masks) -> tuple[torch.Tensor, torch.Tensor]:
    """Token by token and cell by cell."""
    frames = black_out(batch.frames, masks.cells, TINY.cell)
    states = model(frames, masks.ids)
    tokens, cells = [], []
    time, rows, columns = masks.cells.shape[1:]
    for sample in range(len(frames)):
        for place, target in enumerate(masks.text_targets[sample]):
            if target >= 0:
                logits = model.mtm(states[sample, -masks.ids.shape[1] + place])
                tokens.append(-logits.log_softmax(0)[target])
        for t in range(time):
            for y in range(rows):
                for x in range(columns):
                    if masks.cells[sample, t, y, x]:
                        logits = model.mvm(states[sample, t * (1 + rows * columns) + 1 + y * columns + x])
                        cells.append(-logits.log_softmax(0)[batch.codes[sample, t, y, x]])
    return torch.stack(tokens).mean(), torch.stack(cells).mean()


@pytest.mark.parametrize("clip", ["clean", "masked"])
def test_losses_against_brute_force(model, tiny_batch, clip):
    batch = tiny_batch()
    masks = masks_for(batch)
    with torch.no_grad():
        found = task_losses(model, batch, masks, wanted=ALL, settings=LossSettings(clip=clip))
        seen = batch.frames if clip == "clean" else black_out(batch.frames, masks.cells, TINY.cell)
        mtm, mvm = brute_masked(model, batch, masks)
        expected = {
            "answer": F.cross_entropy(answer_logits(model, seen, batch.ids), batch.answer),
            "vtm": brute_matching(model, seen, batch.ids),
            "mtm": mtm,
            "mvm": mvm,
        }
    assert list(found) == list(ALL)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-6, msg=name)


def test_choices_match_clips_with_their_right_text_and_mask_that_one(model, tiny_batch):
    batch = tiny_batch(3, choices=4)
    masks = masks_for(batch)
    right = batch.ids[torch.arange(3), batch.answer]
    assert torch.equal(torch.where(masks.text_targets >= 0, masks.text_targets, masks.ids), right)
    with torch.no_grad():
        found = task_losses(model, batch, masks, wanted=ALL)
        mtm, mvm = brute_masked(model, batch, masks)
        logits = choice_logits(model, batch.frames, batch.ids, pairs_per_pass=5)
        torch.testing.assert_close(found["answer"], F.cross_entropy(logits, batch.answer))
        torch.testing.assert_close(found["vtm"], brute_matching(model, batch.frames, right), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(found["mtm"], mtm)
        torch.testing.assert_close(found["mvm"], mvm)
        one = torch.stack(
            [model.choice(model(batch.frames[1:2], batch.ids[1, o : o + 1])[:, -8])[0, 0] for o in range(4)]
        )
        torch.testing.assert_close(logits[1], one)


def test_released_choices_differ_from_repaired_ones(model, tiny_batch):
    batch = tiny_batch(3, choices=4)
    masks = masks_for(batch, RELEASED)
    assert masks.ids.shape == batch.ids.shape
    with torch.no_grad():
        found = task_losses(model, batch, masks, wanted=ALL, settings=RELEASED)
        seen = black_out(batch.frames, masks.cells, TINY.cell)
        first = brute_matching(model, seen[:1].expand(3, -1, -1, -1, -1), batch.ids[0, :3])
        torch.testing.assert_close(found["vtm"], first, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(
            found["answer"], F.cross_entropy(choice_logits(model, seen, batch.ids), batch.answer)
        )


def test_classes_of_clips_without_a_text(model, tiny_batch):
    """Action recognition: the text is [CLS] [SEP], which nothing can be masked in."""
    batch = tiny_batch()
    batch = replace(batch, ids=torch.tensor([[101, 102, 0, 0]] * 3))
    masks = masks_for(batch)
    assert torch.equal(masks.ids, batch.ids)
    with torch.no_grad():
        found = task_losses(model, batch, masks, wanted=("classification", "mvm"))
        expected = F.cross_entropy(answer_logits(model, batch.frames, batch.ids), batch.answer)
        torch.testing.assert_close(found["classification"], expected)
        frames = black_out(batch.frames, masks.cells, TINY.cell)
        targets = torch.where(masks.cells, batch.codes, -100).flatten(2)
        states = model(frames, batch.ids)[:, :-4].unflatten(1, (2, 10))[:, :, 1:]
        logits = model.mvm(states)[targets >= 0]
        torch.testing.assert_close(found["mvm"], F.cross_entropy(logits, targets[targets >= 0]))


@pytest.mark.parametrize("choices", [0, 4])
@pytest.mark.parametrize("pairs", [1, 2, 5, 100])
def test_pairs_in_passes_give_the_same_losses_and_gradients(model, tiny_batch, pairs, choices):
    batch = tiny_batch(3, choices=choices)
    masks = masks_for(batch)

    def gradient(pairs_per_pass):
        settings = LossSettings(pairs_per_pass=pairs_per_pass)
        found = task_losses(model, batch, masks, wanted=("answer", "vtm"), settings=settings)
        total = found["answer"] + 0.1 * found["vtm"]
        gradients = torch.autograd.grad(total, list(model.parameters()), allow_unused=True)
        return total.detach(), [g for g in gradients if g is not None]

    (whole, expected), (parts, found) = gradient(None), gradient(pairs)
    torch.testing.assert_close(parts, whole)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-7)


def test_each_clip_is_encoded_once_and_each_pair_read_once(model, tiny_batch, monkeypatch):
    clips, pairs = [], []
    encode, join = Violet.encode_video, Violet.join
    monkeypatch.setattr(Violet, "encode_video", lambda self, frames: clips.append(len(frames)) or encode(self, frames))
    monkeypatch.setattr(Violet, "join", lambda self, v, t, i: pairs.append(len(v)) or join(self, v, t, i))
    batch = tiny_batch()
    for clip, encoded in (("clean", 6), ("masked", 3)):
        clips.clear(), pairs.clear()
        task_losses(model, batch, masks_for(batch), wanted=ALL, settings=LossSettings(clip=clip))
        assert sum(clips) == encoded
        assert sum(pairs) == 9 + 3  # every clip with every text once, and the masked pass
    clips.clear()
    task_losses(model, batch, masks_for(batch), wanted=("vtm",))
    assert sum(clips) == 3


def test_the_primary_loss_alone_equals_the_primary_among_others_with_dropout(tiny_batch):
    torch.manual_seed(0)
    noisy = Violet(replace(TINY, dropout=0.1, stochastic_depth=0.2), heads=("vtm", "mtm", "mvm", "answer"), answers=5)
    batch = tiny_batch()
    for wanted in (ALL, ALL[1:]):
        found = []
        for names in (wanted, wanted[:1]):
            torch.manual_seed(3)
            found.append(task_losses(noisy, batch, masks_for(batch), wanted=names)[wanted[0]])
        assert torch.equal(*found), wanted


def test_losses_without_a_target_are_zero_with_gradient(model, tiny_batch):
    batch = tiny_batch()
    batch = replace(batch, answer=torch.full_like(batch.answer, -100), codes=torch.full_like(batch.codes, -1))
    masks = masks_for(batch)
    masks = replace(masks, text_targets=torch.full_like(masks.text_targets, -100))
    for name, loss in task_losses(model, batch, masks, wanted=("answer", "mtm", "mvm")).items():
        assert loss.item() == 0.0, name
        (gradient,) = torch.autograd.grad(loss, model.video.emb_pos, retain_graph=True)
        assert float(gradient.abs().sum()) == 0.0


def test_ignored_targets_do_not_count():
    logits = torch.randn(4, 3, dtype=torch.float64)
    targets = torch.tensor([2, -100, 0, -100])
    torch.testing.assert_close(cross_entropy(logits, targets), F.cross_entropy(logits[::2], targets[::2]))
    assert cross_entropy(logits.bfloat16(), targets).dtype == torch.float32


def test_what_is_missing_is_named(model, tiny_batch):
    batch = tiny_batch()
    masks = masks_for(batch)
    with pytest.raises(ValueError, match="nonsense"):
        task_losses(model, batch, masks, wanted=("nonsense",))
    with pytest.raises(ValueError, match="visual codes"):
        task_losses(model, replace(batch, codes=None), masks, wanted=("mvm",))
    with pytest.raises(ValueError, match="answers"):
        task_losses(model, replace(batch, answer=None), masks, wanted=("answer",))
    with pytest.raises(ValueError, match="head 'mvm'"):
        task_losses(Violet(TINY, heads=("vtm",)), batch, masks, wanted=("mvm",))
    with pytest.raises(ValueError, match="classes"):
        Violet(TINY, heads=("answer",))


def test_negatives_of_all_processes(model, tiny_batch, monkeypatch):
    """Two processes: each sees the texts of both, and the mean of their losses is that of the joined batch."""
    whole = tiny_batch(4)
    parts = [
        Batch(*(t[rows] for t in (whole.frames, whole.ids, whole.answer, whole.codes)))
        for rows in (slice(2), slice(2, 4))
    ]
    text, found = model.embed_text(whole.ids), []
    for rank, part in enumerate(parts):
        monkeypatch.setattr(losses_module, "gather", lambda tensor: text if tensor.is_floating_point() else whole.ids)
        monkeypatch.setattr(losses_module.dist, "get_rank", lambda rank=rank: rank)
        both = task_losses(model, part, masks_for(part), wanted=("answer", "vtm"))["vtm"]
        torch.testing.assert_close(both, task_losses(model, part, masks_for(part), wanted=("vtm",))["vtm"])
        found.append(both)
    monkeypatch.undo()
    expected = task_losses(model, whole, masks_for(whole), wanted=("vtm",))["vtm"]
    torch.testing.assert_close(torch.stack(found).mean(), expected)


def test_scores_of_many_pairs_equal_those_of_single_pairs(model, tiny_batch):
    batch = tiny_batch(5)
    ids = batch.ids[:3]
    with torch.no_grad():
        video = model.encode_video(batch.frames)
        found = score_pairs(model, video, ids, pairs_per_pass=4)
        assert found.shape == (3, 5)
        for text in range(3):
            for clip in range(5):
                states = model(batch.frames[clip : clip + 1], ids[text : text + 1])
                one = model.vtm(states[:, -ids.shape[1]])[0, 0].sigmoid()
                torch.testing.assert_close(found[text, clip], one)


def test_pretraining_draws_and_losses(model, tiny_batch):
    batch = tiny_batch(6)
    masks = draw_pretraining_masks(model, batch, generator=torch.Generator().manual_seed(0))
    again = draw_pretraining_masks(model, batch, generator=torch.Generator().manual_seed(0))
    assert torch.equal(masks.cells, again.cells)
    assert torch.equal(torch.where(masks.text_targets >= 0, masks.text_targets, masks.ids), batch.ids)
    negatives = draw_negatives(6, generator=torch.Generator().manual_seed(1))
    assert negatives.shape == (6, 3)
    for clip, row in enumerate(negatives.tolist()):
        assert clip not in row
        assert len(set(row)) == 3
    losses = pretraining_losses(model, batch, masks, negatives)
    assert list(losses) == ["mtm", "mvm", "vtm"]
    assert all(loss.requires_grad and loss.isfinite() for loss in losses.values())
    assert draw_negatives(1, generator=None).shape == (1, 0)
