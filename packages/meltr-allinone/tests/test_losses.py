"""What the losses of All-in-one promise beside the official numbers: sharing, draws, bounds, empty cases."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from meltr_allinone.losses.draws import Draws, draw, draw_labels, draw_order
from meltr_allinone.losses.tasks import (
    Batch,
    LossSettings,
    aligned_words,
    as_batch,
    contrastive_loss,
    cross_entropy,
    similarity,
    task_losses,
)
from meltr_allinone.model.all_in_one import AllInOne
from meltr_allinone.model.config import TINY

ALL = ("answer", "vtm", "mlm", "wpa", "contrastive", "rank")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def model() -> AllInOne:
    torch.manual_seed(0)
    config = replace(TINY, vocabulary=200, image_size=48, frames=2)
    return AllInOne(config, heads=("mlm", "itm", "rank", "contrastive", "answer"), answers=5).double().eval()


def batch_of(size: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(104, 200, (size, 16), generator=generator)
    ids[:, 0], ids[:, 9], ids[:, 10:] = 101, 102, 0
    video = torch.randn(size, 2, 3, 48, 48, generator=generator, dtype=torch.float64)
    return Batch(video, ids, torch.arange(size) % 5)


def drawn(model: AllInOne, batch: Batch, seed: int = 0, **settings: object) -> Draws:
    generator = torch.Generator().manual_seed(seed)
    return draw(model, batch.ids, frames=batch.video.shape[1], generator=generator, **settings)  # type: ignore[arg-type]


def test_a_loss_alone_is_the_one_among_all_and_everything_learns(model: AllInOne) -> None:
    batch = batch_of(4)
    together = task_losses(model, batch, drawn(model, batch), wanted=ALL)
    assert tuple(together) == ALL
    for name in ALL:
        alone = task_losses(model, batch, drawn(model, batch), wanted=[name])[name]
        torch.testing.assert_close(alone, together[name], rtol=1e-12, atol=0)
        assert alone.shape == ()
    sum(together.values()).backward()  # type: ignore[union-attr]
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_other_draws_give_other_losses_and_raster_order_none(model: AllInOne) -> None:
    batch = batch_of(4)
    joint = ("vtm", "mlm", "rank", "answer")
    first, second = (task_losses(model, batch, drawn(model, batch, seed), wanted=ALL) for seed in (0, 1))
    assert all(first[name] != second[name] for name in joint)
    assert first["contrastive"] == second["contrastive"]
    assert drawn(model, batch, random_order=False).orders == {}
    assert set(drawn(model, batch).orders) == set(joint)


def test_passes_share_what_they_can(model: AllInOne) -> None:
    batch, calls = batch_of(3), []
    model.transformer.patch_embed.proj.register_forward_hook(lambda *_: calls.append("embed"))  # type: ignore[union-attr]
    model.transformer.norm.register_forward_hook(lambda *_: calls.append("pass"))
    task_losses(model, batch, drawn(model, batch), wanted=("vtm", "wpa", "mlm", "answer"))
    assert calls.count("embed") == 1
    assert calls.count("pass") == 3


def test_labels_keep_half_of_the_videos_and_wrong_ones_are_of_others(model: AllInOne) -> None:
    for size in (1, 2, 5, 8):
        for seed in range(5):
            labels = draw_labels(size, device=torch.device("cpu"), generator=torch.Generator().manual_seed(seed))
            assert int(labels.sum()) == max(1, size // 2)
    batch = batch_of(6)
    seen: list[Tensor] = []
    join = model.join

    def spy(text: Tensor, ids: Tensor, video: Tensor, order: Tensor | None = None) -> Tensor:
        seen.append(video)
        return join(text, ids, video, order)

    model.join = spy  # type: ignore[method-assign]
    tokens = model.embed_video(batch.video)
    for hard in (False, True):
        for seed in range(6):
            draws = drawn(model, batch, seed)
            settings = LossSettings(hard_negatives=hard)
            task_losses(model, batch, draws, wanted=["vtm"], settings=settings)
            same = (seen.pop().flatten(1) == tokens.flatten(1)).all(1)
            assert torch.equal(same, draws.labels.bool())


def test_hard_negatives_are_the_ones_that_resemble_the_text(model: AllInOne) -> None:
    batch = batch_of(5)
    scores = similarity(model.text_vectors(batch.ids), model.video_vectors(batch.video))
    nearest = scores.masked_fill(torch.eye(5, dtype=torch.bool), -2).argmax(1)
    chosen = []
    join, settings = model.join, LossSettings(hard_negatives=True, temperature=1e-6)
    model.join = lambda text, ids, video, order=None: chosen.append(video) or join(text, ids, video, order)  # type: ignore[method-assign,func-returns-value,assignment]
    draws = replace(drawn(model, batch), labels=torch.tensor([0, 1, 0, 0, 1]))
    task_losses(model, batch, draws, wanted=["vtm"], settings=settings)
    tokens = model.embed_video(batch.video)
    rows = torch.where(draws.labels.bool(), torch.arange(5), nearest)
    torch.testing.assert_close(chosen[0], tokens[rows])


def test_texts_of_the_batch_serve_the_ranking_loss_when_none_come_along(model: AllInOne) -> None:
    batch = batch_of(3)
    draws = drawn(model, batch, random_order=False)
    found = task_losses(model, batch, draws, wanted=["rank"])["rank"]
    others = torch.stack([batch.ids[[1, 2]], batch.ids[[2, 0]], batch.ids[[0, 1]]])
    given = task_losses(model, replace(batch, false_ids=others), draws, wanted=["rank"])["rank"]
    torch.testing.assert_close(found, given)
    pieces = LossSettings(pairs_per_pass=2)
    torch.testing.assert_close(task_losses(model, batch, draws, wanted=["rank"], settings=pieces)["rank"], found)


def test_a_batch_of_one_and_a_batch_without_hidden_words(model: AllInOne) -> None:
    single = batch_of(1)
    losses = task_losses(model, single, drawn(model, single), wanted=ALL)
    assert all(loss.isfinite() for loss in losses.values())
    assert float(losses["rank"]) == 0
    assert float(losses["contrastive"]) == 0
    empty = replace(batch_of(2), ids=torch.tensor([[101, 102] + [0] * 14] * 2))
    losses = task_losses(model, empty, drawn(model, empty), wanted=("vtm", "mlm", "wpa"))
    assert float(losses["mlm"]) == 0
    assert float(losses["wpa"]) == 0
    (gradient,) = torch.autograd.grad(losses["mlm"], model.pooler.dense.weight, allow_unused=True)
    assert losses["mlm"].requires_grad
    assert gradient is None
    unanswerable = replace(batch_of(2), answer=torch.tensor([-100, -100]))
    assert float(task_losses(model, unanswerable, drawn(model, unanswerable), wanted=["answer"])["answer"]) == 0


def test_contrastive_loss_of_vectors_at_right_angles() -> None:
    rows = 3 * torch.eye(4, dtype=torch.float64)
    one = torch.tensor(1 / 0.05, dtype=torch.float64).exp()
    torch.testing.assert_close(contrastive_loss(rows, rows), -2 * torch.log(one / (one + 3)))


def test_aligned_words_are_those_between_the_frames_of_a_text() -> None:
    ids = torch.tensor([[101, 7, 8, 102, 0], [101, 102, 0, 0, 0], [101, 5, 6, 7, 102]])
    assert aligned_words(ids).tolist() == [
        [False, True, True, False, False],
        [False] * 5,
        [False, True, True, True, False],
    ]


def test_orders_are_permutations_of_every_frame() -> None:
    order = draw_order(3, 9, frames=2, device=torch.device("cpu"), generator=torch.Generator().manual_seed(0))
    assert order.shape == (6, 9)
    assert torch.equal(order.sort(1).values, torch.arange(9).expand(6, -1))
    assert len({tuple(row) for row in order.tolist()}) > 1


def test_low_precision_losses_are_taken_in_float32() -> None:
    logits = torch.tensor([[4.0, 1.0], [0.0, 2.0]])
    targets = torch.tensor([0, -100])
    assert cross_entropy(logits.bfloat16(), targets).dtype == torch.float32
    torch.testing.assert_close(cross_entropy(logits, targets), torch.tensor([1.0, 4.0]).logsumexp(0) - 4)
    assert similarity(torch.ones(1, 2).half(), torch.ones(1, 2).half()).dtype == torch.float32


def test_batches_come_normalised_from_columns() -> None:
    video = torch.randint(0, 256, (2, 2, 3, 48, 48), dtype=torch.uint8)
    batch = as_batch({"video": video, "ids": torch.ones(2, 4, dtype=torch.long), "false_video": video}, "inception")
    torch.testing.assert_close(batch.video, (video / 255 - 0.5) / 0.5)
    assert batch.false_video is not None
    torch.testing.assert_close(batch.video, batch.false_video)


def test_what_is_missing_is_named() -> None:
    model = AllInOne(replace(TINY, vocabulary=200, image_size=48, frames=2), heads=("mlm",)).double()
    batch = replace(batch_of(2), answer=None)
    draws = drawn(model, batch)
    with pytest.raises(ValueError, match=r"no losses \['itm'\]"):
        task_losses(model, batch, draws, wanted=["itm"])
    for name, part in (("vtm", "itm_score"), ("rank", "rank_output"), ("contrastive", "txt_proj")):
        with pytest.raises(ValueError, match=part):
            task_losses(model, batch, draws, wanted=[name])
    with pytest.raises(ValueError, match="the batch has none"):
        task_losses(model, batch, draws, wanted=["answer"])
