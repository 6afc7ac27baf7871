"""Words of the miniature data sets: true to the clip, and of no use without looking at it."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from meltr.video import annotations, miniature
from meltr.video.corpus import Corpus, Item
from meltr.video.frames.media import decode
from meltr.video.miniature.language import ACTIONS, DOES, LABELS, NUMBERS, OTHER_NAMES, WAYS, WHERE, captions
from meltr.video.miniature.layouts import ONE_MOVEMENT
from meltr.video.miniature.movements import PHASES, STEADY
from meltr.video.miniature.rendering import HEIGHT, WIDTH, render
from meltr.video.miniature.scenes import COLOURS, PLACES, SHAPES, Scene, draw
from meltr.video.tasks.baselines import baseline

QUESTIONS = ("msvd", "tgif-action", "tgif-transition", "tgif-frame", "manifest")


@pytest.fixture
def without_clips(monkeypatch):
    """Return a function that writes large annotations, and reads them, with empty files for clips."""
    shown: dict[str, Scene] = {}

    def touch(clips, progress) -> None:
        for path, scene in clips.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            shown[path.stem] = scene

    monkeypatch.setattr(miniature, "write_clips", touch)

    def read(dataset: str, task: str, folder: Path, *, count: int) -> tuple[Corpus, dict[str, Scene]]:
        shown.clear()
        miniature.write(dataset, folder / dataset, sizes={"train": count, "test": count})
        corpus = annotations.read(dataset, task, folder / dataset)
        return corpus, {key: shown[path.stem] for key, path in corpus.media.items()}

    return read


def truth(scene: Scene) -> set[str]:
    """Return all right answers to all open questions about a scene."""
    name = scene.movements[0].name
    return {
        scene.thing.shape,
        scene.thing.colour,
        scene.place,
        NUMBERS[len(scene.still)],
        WAYS.get(name, LABELS[name]),
    }


@pytest.mark.parametrize("dataset", ["msvd", "tgif-frame", "manifest"])
def test_open_questions_have_the_answers_of_their_scene(dataset, tmp_path, without_clips):
    corpus, scenes = without_clips(dataset, "qa", tmp_path, count=60)
    words = set(SHAPES) | set(COLOURS) | set(PLACES)
    for item in corpus.splits["train"]:
        scene = scenes[item.media]
        assert item.answer in truth(scene)
        mentioned = words & set(item.question.rstrip("?").split())
        # What the question names is what the scene shows, and never the answer.
        assert mentioned <= truth(scene) - {item.answer}


@pytest.mark.parametrize(
    ("dataset", "task"),
    [("tgif-action", "qa"), ("tgif-transition", "qa"), ("kinetics400", "action")],
)
def test_where_movements_are_the_classes_it_is_dark(dataset, task, tmp_path, without_clips):
    _, scenes = without_clips(dataset, task, tmp_path, count=60)
    assert all(render(scene).mean(axis=(0, 3)).mean() < 60 for scene in list(scenes.values())[:20])
    assert {len(scene.still) for scene in scenes.values()} == {0, 1, 2}


def test_multiple_choice_has_the_answer_of_its_scene(tmp_path, without_clips):
    corpus, scenes = without_clips("tgif-action", "qa", tmp_path, count=60)
    for item in corpus.splits["train"]:
        (movement,) = scenes[item.media].movements
        assert item.answer == item.choices[item.correct] == ACTIONS[movement.name]
        assert f" {movement.times} times" in item.question
        assert len(set(item.choices)) == 5
    corpus, scenes = without_clips("tgif-transition", "qa", tmp_path, count=60)
    for item in corpus.splits["train"]:
        first, second = (ACTIONS[movement.name] for movement in scenes[item.media].movements)
        known, expected = (first, second) if " after " in item.question else (second, first)
        assert item.answer == item.choices[item.correct] == expected
        assert known.split()[-1] in item.question
        assert set(item.choices) == {ACTIONS[name] for name in PHASES} - {known}


def guess_rates(items: tuple[Item, ...]) -> np.ndarray:
    """Return the probability of a blind guess for each item: one of the answers that its kind of question has."""
    sizes = dict.fromkeys(SHAPES, 6) | dict.fromkeys(COLOURS, 6) | dict.fromkeys(PLACES, 5) | dict.fromkeys(NUMBERS, 3)
    return np.array([1 / len(item.choices) if item.choices else 1 / sizes.get(item.answer, 4) for item in items])


@pytest.mark.parametrize("dataset", QUESTIONS)
def test_questions_cannot_be_answered_without_looking(dataset, tmp_path, without_clips):
    corpus, _ = without_clips(dataset, "qa", tmp_path, count=600)
    train, test = corpus.splits["train"], corpus.splits["test"]
    rates = guess_rates(test)
    # Questions about one clip share its luck, five of them at most: a standard error as of a fifth of the questions.
    bound = 100 * (rates.mean() + 3 * np.sqrt((rates * (1 - rates)).sum() * 5) / len(rates))
    assert baseline(corpus, "test").metrics["accuracy"] < bound
    if test[0].choices:
        # Every pair of a word of the question and a choice, for each of the choices.
        def pairs(item: Item) -> list[str]:
            words = item.question.lower().split()
            return [" ".join(f"{word}+{choice}".replace(" ", "_") for word in [*words, "-"]) for choice in item.choices]

        counter = CountVectorizer(tokenizer=str.split, token_pattern=None)
        features = counter.fit_transform([text for item in train for text in pairs(item)])
        targets = [index == item.correct for item in train for index in range(5)]
        model = LogisticRegression(max_iter=300).fit(features, targets)
        scores = model.decision_function(counter.transform([text for item in test for text in pairs(item)]))
        hit = scores.reshape(-1, 5).argmax(1) == [item.correct for item in test]
        assert 100 * hit.mean() < bound


def test_positions_of_right_choices_are_even(tmp_path, without_clips):
    corpus, _ = without_clips("tgif-action", "qa", tmp_path, count=1000)
    counts = np.bincount([item.correct for item in corpus.splits["train"]], minlength=5)
    assert np.abs(counts - 200).max() < 4 * np.sqrt(1000 * 0.2 * 0.8)


@settings(deadline=None)
@given(st.integers(0, 500))
def test_captions_tell_what_moves_and_how(seed):
    rng = np.random.default_rng(seed)
    (scene,) = draw(1, ONE_MOVEMENT, rng)
    found = captions(scene, 5, rng)
    assert len(set(found)) == 5
    for caption in found:
        assert any(f" {name} " in f"{caption} " for name in OTHER_NAMES[scene.thing.shape])
        assert scene.thing.colour in caption.split()
        assert any(words in caption for words in DOES[scene.movements[0].name])
    assert any(words in found[0] for words in WHERE[scene.place])
    for place, phrases in WHERE.items():
        if place != scene.place:
            assert not any(words in found[0] for words in phrases)


def test_test_captions_are_of_one_clip_each(tmp_path, without_clips):
    corpus, scenes = without_clips("msrvtt-7k", "retrieval", tmp_path, count=96)
    told = Counter()
    for item in corpus.splits["test"]:
        assert len(item.captions) == 1
        scene = scenes[item.media]
        told[scene.thing, scene.movements, scene.place] += 1
    assert max(told.values()) == 1
    assert all(len(item.captions) == 5 for item in corpus.splits["train"])


def test_classes_are_movements(tmp_path, without_clips):
    corpus, scenes = without_clips("kinetics400", "action", tmp_path, count=40)
    assert sorted(corpus.answers) == sorted(LABELS[name] for name in STEADY)
    for item in corpus.splits["test"]:
        assert item.label == LABELS[scenes[item.media].movements[0].name]
    assert baseline(corpus, "test").metrics["top1"] == 12.5


# What pixels tell


def coarse(pictures: np.ndarray) -> np.ndarray:
    """Return one of 64 colours for every pixel."""
    return (np.minimum(3, (4 * pictures).astype(int)) * (16, 4, 1)).sum(axis=-1)


def statistics_of(frames: np.ndarray) -> np.ndarray:
    """Return colours of the picture and of what changes in it, and where and how large that is in five frames."""
    pictures = frames.astype(float) / 255
    still = np.median(pictures, axis=0)
    change = np.abs(pictures - still).max(axis=-1) > 0.15
    histogram = np.bincount(coarse(still).ravel(), minlength=64) / still[..., 0].size
    moving = np.bincount(coarse(pictures)[change], minlength=64) / max(1, change.sum())
    path = []
    for index in np.linspace(0, len(frames) - 1, 5).round().astype(int):
        rows, columns = np.nonzero(change[index]) if change[index].any() else (np.zeros(1), np.zeros(1))
        path += [rows.mean() / HEIGHT, columns.mean() / WIDTH, len(rows) / HEIGHT / WIDTH, np.ptp(columns) / WIDTH]
    return np.concatenate([histogram, moving, path, np.diff(np.reshape(path, (5, 4)), axis=0).ravel()])


@pytest.mark.slow
@pytest.mark.parametrize(("dataset", "task", "factor"), [("msvd", "qa", 2.0), ("kinetics400", "action", 3.0)])
def test_a_linear_model_on_statistics_of_pixels_beats_the_baseline(dataset, task, factor, tmp_path):
    """Far above not looking: `factor` times the baseline."""
    root = miniature.write(dataset, tmp_path / dataset, sizes={"train": 240, "test": 80})
    corpus = annotations.read(dataset, task, root)
    seen = {key: statistics_of(decode(path, range).frames) for key, path in corpus.media.items()}

    def kind(item: Item) -> str:
        groups = {"shape": SHAPES, "colour": COLOURS, "place": PLACES, "number": NUMBERS, "way": WAYS.values()}
        return next((name for name, words in groups.items() if item.answer in words), "doing")

    rows = defaultdict(lambda: defaultdict(list))
    for split in ("train", "test"):
        for item in corpus.splits[split]:
            rows[kind(item) if task == "qa" else task][split].append((seen[item.media], item.answer or item.label))
    hits = []
    for each in rows.values():
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200, C=0.1))
        model.fit([x for x, _ in each["train"]], [y for _, y in each["train"]])
        hits += (model.predict([x for x, _ in each["test"]]) == [y for _, y in each["test"]]).tolist()
    blind = baseline(corpus, "test").metrics["accuracy" if task == "qa" else "top1"]
    assert 100 * np.mean(hits) > factor * blind
