"""Scores of texts and videos: against loops over single pairs, and what re-ranking may and may not change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from meltr.video.tasks.reranking import best_of, put_ahead
from meltr_allinone.losses.draws import draw_order
from meltr_allinone.model.all_in_one import AllInOne
from meltr_allinone.model.config import TINY
from meltr_allinone.model.retrieval import Retrieval
from meltr_allinone.model.scoring import answer_logits, joint_scores, pooled_pairs, seeded_orders

FRAMES = 3


@pytest.fixture
def model() -> AllInOne:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = replace(TINY, vocabulary=200, image_size=48, frames=FRAMES)
    made = AllInOne(config, heads=("itm", "contrastive", "answer"), answers=4).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(4).add_(0.1 * torch.randn_like(parameter))
    return made


@pytest.fixture
def texts() -> Tensor:
    ids = torch.randint(104, 200, (5, 8), generator=torch.Generator().manual_seed(1))
    ids[:, 0], ids[2:, 5:] = 101, 0
    return ids


@pytest.fixture
def videos() -> Tensor:
    return torch.randn(4, FRAMES, 3, 48, 48, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def one_by_one(model: AllInOne, texts: Tensor, videos: Tensor, orders: Tensor | None) -> np.ndarray:
    """The log odds of a match, every pair in a pass of its own."""
    found = np.zeros((len(texts), len(videos)))
    for row, ids in enumerate(texts):
        for column, video in enumerate(videos):
            order = None if orders is None else orders[column]
            tokens = model.embed_video(video[None])
            features = model.join(model.embed_text(ids[None]), ids[None], tokens, order)
            found[row, column] = float(F.log_softmax(model.itm_score(model.pooler(features)), 1)[0].diff())
    return found


@pytest.mark.parametrize("seed", [None, 7])
def test_joint_scores_are_those_of_single_pairs(model, texts, videos, seed):
    retrieval = Retrieval("joint", order_seed=seed, pairs_per_pass=3)
    with torch.no_grad():
        scores = retrieval.scores(model, texts, videos.split(3))
        expected = one_by_one(model, texts, videos, seeded_orders(model, 4, FRAMES, seed=seed))
    np.testing.assert_allclose(scores.of_texts, expected, rtol=1e-9)
    assert scores.of_videos is scores.of_texts
    assert np.ptp(expected) > 0.1


def test_dual_scores_are_cosines_and_need_no_joint_pass(model, texts, videos, monkeypatch):
    monkeypatch.setattr(model, "join", lambda *args, **kwargs: pytest.fail("a joint pass"))
    scores = Retrieval("dual", batch_size=2).scores(model, texts, videos.split(3))
    with torch.no_grad():
        expected = [
            [float(F.cosine_similarity(model.text_vectors(t[None]), model.video_vectors(v[None]))) for v in videos]
            for t in texts
        ]
    np.testing.assert_allclose(scores.of_texts, expected, rtol=1e-9)


def test_reranking_orders_the_best_anew_and_nothing_else(model, texts, videos):
    dual = Retrieval("dual").scores(model, texts, [videos]).of_texts
    joint = Retrieval("joint", order_seed=3).scores(model, texts, [videos]).of_texts
    scores = Retrieval("rerank", rerank=2, order_seed=3).scores(model, texts, [videos])
    for ours, first, second in ((scores.of_texts, dual, joint), (scores.of_videos.T, dual.T, joint.T)):
        for row, by_dual, by_joint in zip(ours, first, second, strict=True):
            best = sorted(range(len(row)), key=lambda place: -by_dual[place])
            expected = sorted(best[:2], key=lambda place: -by_joint[place]) + best[2:]
            assert sorted(range(len(row)), key=lambda place: -row[place]) == expected
    everything = Retrieval("rerank", rerank=50, order_seed=3).scores(model, texts, [videos])
    np.testing.assert_array_equal(everything.of_texts.argsort(1), joint.argsort(1))


def test_only_the_best_get_a_joint_pass(model, texts, videos):
    pairs = []
    model.itm_score.register_forward_hook(lambda module, args, output: pairs.append(len(output)))
    Retrieval("rerank", rerank=1).scores(model, texts, [videos])
    assert sum(pairs) <= len(texts) + len(videos)


def test_the_ranking_head_scores_where_there_is_one(texts, videos):
    torch.manual_seed(1)
    config = replace(TINY, vocabulary=200, image_size=48, frames=FRAMES)
    model = AllInOne(config, heads=("itm", "rank")).double().eval()
    with torch.no_grad():
        tokens, rows = model.embed_video(videos), torch.arange(4)
        pooled = pooled_pairs(model, tokens, texts, clips=rows, texts=rows)
        found = joint_scores(model, tokens, texts, clips=rows, texts=rows)
        torch.testing.assert_close(found, model.itm_score(pooled)[:, 1])  # a copy of its row 1 until it is trained
    assert pooled_pairs(model, tokens, texts, clips=rows[:0], texts=rows[:0]).shape == (0, config.width)


def test_the_order_of_a_video_depends_on_seed_and_number_alone(model):
    whole = seeded_orders(model, 6, FRAMES, seed=5)
    assert whole is not None
    assert whole.shape == (6, FRAMES, model.config.patches)
    assert torch.equal(whole[4:], seeded_orders(model, 2, FRAMES, seed=5, start=4))
    assert not torch.equal(whole, seeded_orders(model, 6, FRAMES, seed=6))
    assert not torch.equal(whole[0], whole[1])
    assert seeded_orders(model, 6, FRAMES, seed=None) is None


def test_answers_of_a_video_do_not_depend_on_the_batch(model, texts, videos):
    orders = seeded_orders(model, 4, FRAMES, seed=1)
    with torch.no_grad():
        together = answer_logits(model, videos, texts[:4], orders=orders)
        alone = answer_logits(model, videos[2:3], texts[2:3], orders=orders[2:3])
        other = draw_order(4, 9, frames=FRAMES, device=torch.device("cpu"), generator=torch.Generator().manual_seed(9))
        moved = answer_logits(model, videos, texts[:4], orders=other.view(4, FRAMES, 9))
    torch.testing.assert_close(together[2:3], alone)
    assert not torch.allclose(together, moved)


def test_best_of_and_put_ahead():
    scores = np.array([[0.3, 0.9, 0.9, 0.1]])
    assert best_of(scores, 2).tolist() == [[False, True, True, False]]
    assert best_of(scores, 9).all()
    assert best_of(np.zeros((1, 3)), 1).tolist() == [[True, False, False]]
    moved = put_ahead(scores, np.array([[0.0, -7.0, -5.0, 0.0]]), best_of(scores, 2))
    assert moved.argsort().tolist() == [[3, 0, 1, 2]]
