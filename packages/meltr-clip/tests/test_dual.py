"""Dual encoders against transformers' own models and losses, and losses against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional as F

from meltr.texts.quiet import quiet
from meltr_clip.encoder import Texts
from meltr_clip.losses.draws import Words, draw, hidden_places, wrong_pairs
from meltr_clip.losses.dual import Batch, Passes, task_losses
from meltr_clip.model.dual import Dual
from meltr_clip.model.pixels import cropped, inside
from meltr_clip.weights.pretrained import pretrained_towers

TEXTS = ["a red dog runs .", "the big cat", "a small green video of a dog ."]
OWN = {"clip": "contrastive", "siglip": "sigmoid", "siglip2": "sigmoid"}
CLOSE = {"rtol": 1e-6, "atol": 1e-6}
WORDS = Words(18, (0, 1, 2, 3, 4), 4)


@pytest.fixture(params=list(OWN))
def case(request, folder, encoded):
    """Our model of a family with its columns, and transformers' own with its inputs, from one folder."""
    path = folder(request.param)
    parts, columns = encoded(path, 1)
    towers, report = pretrained_towers(path, parts, attention="fused")
    assert report.complete
    texts = Texts(parts.tokenizer, parts.length)
    classes = texts.encode(["a video of cat.", "a video of dog."])
    model = Dual(towers, parts.images, heads=("sigmoid", "matching", "masked_text"), class_ids=classes)
    with quiet():
        reference = transformers.AutoModel.from_pretrained(path)
        images = transformers.AutoImageProcessor.from_pretrained(path)
    return request.param, model, columns, texts, reference, images


def theirs(reference, images, videos, texts, sentences):
    pictures = images([video[0] for video in videos.values()], return_tensors="pt")
    ids = texts._tokenizer(sentences, padding="max_length", max_length=texts.length, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return reference(input_ids=ids, **pictures, return_loss=len(sentences) == len(videos))


def test_scores_and_own_loss_equal_those_of_transformers(case, videos):
    family, model, columns, texts, reference, images = case
    found = theirs(reference, images, videos, texts, TEXTS)
    ids = texts.encode(TEXTS)
    batch = Batch(columns["video"], ids, torch.arange(3), columns.get("shapes"))
    loss = task_losses(model, batch, draw(ids, 1, WORDS, generator=None), wanted=[OWN[family]])[OWN[family]]
    torch.testing.assert_close(loss.detach(), found.loss.reshape(()), **CLOSE)
    clips = model.clips(model.pictures(columns["video"]), columns.get("shapes"))
    torch.testing.assert_close(model.scores(model.texts(ids), clips).detach(), found.logits_per_text, **CLOSE)


def test_the_class_head_starts_as_the_similarity_of_texts_and_pictures(case, videos):
    _, model, columns, texts, reference, images = case
    assert not model.class_logits(columns["video"], columns.get("shapes")).diff(dim=1).any()
    model.start_classes()
    found = theirs(reference, images, videos, texts, ["a video of cat.", "a video of dog."])
    logits = model.class_logits(columns["video"], columns.get("shapes"))
    torch.testing.assert_close(logits.detach(), found.logits_per_image, **CLOSE)


def test_a_clip_is_the_mean_of_its_normalised_frames(folder, encoded, videos):
    path = folder("clip")
    parts, columns = encoded(path)
    model = Dual(pretrained_towers(path, parts, attention="eager")[0], parts.images)
    with torch.no_grad():
        clips = model.clips(model.pictures(columns["video"]))
        for video, clip in zip(videos.values(), clips, strict=True):
            pixels = parts.images(list(video), return_tensors="pt")
            frames = F.normalize(model.towers.get_image_features(**pixels).pooler_output, dim=1)
            torch.testing.assert_close(clip, F.normalize(frames.mean(0), dim=0), **CLOSE)


@pytest.fixture
def passes(folder, encoded):
    path = folder("clip")
    parts, columns = encoded(path)
    model = Dual(
        pretrained_towers(path, parts, attention="fused")[0], parts.images, heads=("sigmoid", "matching", "masked_text")
    )
    ids = Texts(parts.tokenizer, parts.length).encode(TEXTS)
    batch = Batch(columns["video"], ids, torch.tensor([7, 9, 7]))
    draws = draw(ids, 4, WORDS, generator=torch.Generator().manual_seed(1))
    return Passes(model, batch, draws, "all")


def test_all_pairs_of_a_group_are_right(passes):
    """The first and the third belong together: hand-written sums over the rows."""
    model, same = passes.model, np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1]])
    scores = model.scores(passes.texts, passes.clips).detach().double().numpy()
    chances = [np.exp(each) / np.exp(each).sum(1, keepdims=True) for each in (scores, scores.T)]
    rows = [-(same / same.sum(1, keepdims=True) * np.log(each)).sum(1).mean() for each in chances]
    assert passes.contrast().item() == pytest.approx(sum(rows) / 2, rel=1e-5)
    pairs = model.pair_scores(passes.texts, passes.clips).detach().double().numpy()
    cosines = (passes.texts @ passes.clips.T).detach().double().numpy()
    np.testing.assert_allclose(pairs, 10 * cosines - 10, rtol=1e-5)  # CLIP has no bias: SigLIP's start
    expected = np.log1p(np.exp(-(2 * same - 1) * pairs)).sum(1).mean()
    assert passes.sigmoid().item() == pytest.approx(expected, rel=1e-5)


def test_hidden_tokens_are_predicted_from_text_and_clip(passes):
    model, draws, ids = passes.model, passes.draws, passes.batch.ids
    assert draws.chosen.any(1).all()
    assert not draws.chosen[ids < 5].any()
    assert (draws.hidden == torch.where(draws.chosen, 4, ids)).all()
    states, _ = model.states(draws.hidden)
    logits = model.masked_text(states, passes.clips, model.embeddings)
    places, counted = hidden_places(draws.chosen)
    kept = torch.zeros_like(draws.chosen).scatter(1, places, counted)
    assert (kept <= draws.chosen).all()
    expected = F.cross_entropy(logits[kept], ids[kept])
    torch.testing.assert_close(passes.masked_text(), expected, rtol=1e-5, atol=1e-6)
    unlike = draw(ids, 4, Words(18, (0, 1, 2, 3, 4)), generator=torch.Generator().manual_seed(1))
    assert (unlike.chosen == draws.chosen).all()
    assert (unlike.hidden[~draws.chosen] == ids[~draws.chosen]).all()


def test_wrong_pairs_follow_their_probabilities_and_are_never_right():
    scores = torch.tensor([[0.0, 1.0, 2.0, 0.5]]).repeat(4, 1)
    same = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0], [1, 1, 1, 1]], dtype=torch.bool)
    grid = (torch.arange(2000) + 0.5) / 2000
    chosen = [wrong_pairs(scores, same, chance.expand(4)) for chance in grid]
    assert all(there.tolist() == [True, True, True, False] for _, there in chosen)
    columns = torch.stack([column for column, _ in chosen], 1)
    for row in range(3):
        expected = scores[row].masked_fill(same[row], -torch.inf).softmax(0)
        found = torch.bincount(columns[row], minlength=4) / 2000
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
    last, _ = wrong_pairs(scores, same, torch.full((4,), 1 - 1e-8))  # 1 in float32: beyond the sum
    assert last[:3].tolist() == [3, 2, 3]


def test_matching_skips_what_has_no_wrong_pair(passes):
    alone = Passes(passes.model, Batch(passes.batch.video, passes.batch.ids, torch.zeros(3)), passes.draws, "own")
    head = passes.model.matching
    rows = torch.cat([passes.texts, passes.clips, passes.texts * passes.clips], 1)
    torch.testing.assert_close(alone.matching(), F.softplus(-head(rows)).mean(), **CLOSE)
    assert passes.matching().item() != pytest.approx(alone.matching().item())


def test_a_view_that_shows_everything_agrees_with_its_clip(case):
    _, model, columns, _, _, _ = case
    pictures, shapes = model.pictures(columns["video"]), columns.get("shapes")
    whole = model.clips(pictures, shapes)
    same = model.clips(pictures, shapes, box=torch.tensor([[1.0, 0.3, 0.8]] * 3))
    torch.testing.assert_close(same, whole, rtol=1e-5, atol=1e-5)
    part = model.clips(pictures, shapes, box=torch.tensor([[0.6, 0.0, 1.0]] * 3))
    assert (part * whole).sum(1).mean().item() < 1 - 1e-6


def test_a_crop_shows_its_part_of_a_slope():
    """A picture whose value is its place: the crop's pixels lie at the places of the part, wherever that is."""
    size = 8
    places = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    rows, columns = places[:, None].expand(size, size), places.expand(size, size)
    pictures = torch.stack([rows, columns, rows]).expand(2, 3, 3, size, size)
    found = cropped(pictures, torch.tensor([[0.5, 1.0, 0.0], [0.75, 0.5, 0.5]], dtype=torch.float64))
    for clip, (side, top, left) in zip(found, [(0.5, 0.5, 0.0), (0.75, 0.125, 0.125)], strict=True):
        inner = slice(1, size - 1)  # at the border of the picture values repeat
        for frame in clip:
            torch.testing.assert_close(frame[0, inner, 0], (top + side * places)[inner])
            torch.testing.assert_close(frame[1, 0, inner], (left + side * places)[inner])


def test_patches_inside_a_part():
    kept = inside(torch.tensor([[[2, 4]]]), torch.tensor([[0.6, 0.0, 1.0]]), 10)[0, 0]
    assert kept.tolist() == [False, False, True, True] + [False] * 6
    assert inside(torch.tensor([[[2, 4]]]), torch.tensor([[1.0, 0.5, 0.5]]), 10).sum() == 8
