"""Trivial answers against scikit-learn, closed forms and text in which the question gives the answer away."""

from __future__ import annotations

import csv
import gzip
import sys
from itertools import pairwise

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.naive_bayes import MultinomialNB

from meltr.video.corpus import Corpus, Item
from meltr.video.tasks.baselines import (
    answer_blindly,
    baseline,
    favourite_choices,
    majority_sign,
    mean_score,
    one_caption,
    question_only,
)
from meltr.video.tasks.captions import corpus_scores
from meltr.video.tasks.typical_caption import typical_caption
from places import shared

WORDS = ("what", "who", "where", "man", "dog", "red", "plays", "the", "ball", "near")


def asked(question: str, answer: str) -> Item:
    return Item(media="clip", id=question, question=question, answer=answer)


def offered(choices: str, correct: int) -> Item:
    names = tuple(choices.split())
    return Item(media="clip", id=choices, question="what?", answer=names[correct], choices=names, correct=correct)


def corpus(task: str, train: list[Item], test: list[Item]) -> Corpus:
    return Corpus("made", task, {"train": tuple(train), "test": tuple(test)}, {})


def unigrams_and_pairs(question: str) -> list[str]:
    words = question.split()
    return words + [f"{first}+{second}" for first, second in pairwise(["^", *words])]


def test_answers_to_new_questions_are_those_of_naive_bayes_in_scikit_learn():
    rng = np.random.default_rng(0)
    questions = sorted({" ".join(rng.choice(WORDS, rng.integers(2, 7))) for _ in range(400)})
    answers = [
        str(answer) for answer in rng.choice(["yes", "no", "two", "cat"], len(questions), p=[0.4, 0.3, 0.2, 0.1])
    ]
    train, new = slice(0, 250), slice(250, None)
    counter = CountVectorizer(analyzer=unigrams_and_pairs)
    model = MultinomialNB().fit(counter.fit_transform(questions[train]), answers[train])
    expected = model.predict(counter.transform(questions[new])).tolist()
    items = [asked(*pair) for pair in zip(questions[train], answers[train], strict=True)]
    assert len(set(expected)) > 2
    assert answer_blindly(items, questions[new]) == expected


def test_a_question_that_was_asked_often_gets_its_most_frequent_answer():
    train = [asked("What is it?", "dog")] * 2 + [asked("what is it", "cat")] + [asked("is it a cat?", "cat")] * 50
    assert answer_blindly(train, ["WHAT is it ?"]) == ["dog"]


def test_words_that_give_the_answer_away_are_found():
    train = [asked(f"what is the {colour} thing number {n}?", colour) for n in range(30) for colour in ("red", "blue")]
    test = [asked(f"which {colour} thing is it?", colour) for colour in ("red", "blue") * 5]
    assert question_only(train, test).metrics == {"accuracy": 100.0}


def test_questions_without_known_words_get_the_most_frequent_answer():
    train = [asked("one two", "a"), asked("one three", "b"), asked("two four", "b")]
    assert answer_blindly(train, ["", "zebra"]) == ["b", "b"]


def test_the_choice_that_was_right_most_often_is_chosen():
    train = [offered("hop sway", 0)] * 3 + [offered("sway hop", 0), offered("sway grow", 1)]
    # right / offered: hop 3/4, sway 1/5, grow 1/1; drawn to chance: 4/6, 2/7, 2/3; never offered: 1/2.
    assert favourite_choices(
        train, [offered("sway hop", 0), offered("sway unknown", 0), offered("unknown hop", 0)]
    ) == [
        1,
        1,
        1,
    ]
    found = baseline(corpus("qa", train, [offered("sway hop", 1), offered("sway hop", 0)]), "test")
    assert found.metrics == {"accuracy": 50.0}
    assert "without the video" in found.name


def test_the_most_frequent_classes():
    train = [Item("clip", str(n), label=label) for n, label in enumerate("aaabbccdefg")]
    test = [Item("clip", str(n), label=label) for n, label in enumerate("abcdefgx")]
    assert baseline(corpus("action", train, test), "test").metrics == {"top1": 12.5, "top5": 62.5}


def test_chance_of_retrieval():
    items = [Item(str(n), str(n), captions=("a", "b")) for n in range(20)]
    metrics = baseline(corpus("retrieval", items, items), "test").metrics
    assert metrics["r@1"] == pytest.approx(5)
    assert metrics["v2t/r@1"] == pytest.approx(5)
    assert metrics["v2t/r@5"] == pytest.approx(100 * (1 - 35 * 34 / (40 * 39)))  # neither of the two among five
    assert metrics["medr"] == 10.5


def test_what_cannot_be_answered_is_refused():
    with pytest.raises(ValueError, match="no examples in split 'validation'"):
        baseline(corpus("qa", [], []), "validation")
    with pytest.raises(ValueError, match="no baseline for task 'tracking'"):
        baseline(corpus("tracking", [], [asked("what", "it")]), "test")


@pytest.mark.slow
def test_real_questions_beat_the_most_frequent_answer():
    folder = shared("data", "msvd_text")
    read = {}
    for split in ("train", "val"):
        with gzip.open(folder / f"qa_{split}.csv.gz", "rt", encoding="utf-8") as stream:
            read[split] = [asked(row["question"], row["answer"]) for row in csv.DictReader(stream)]
    answers = [item.answer for item in read["val"]]
    constant = 100 * max(answers.count(answer) for answer in set(answers)) / len(answers)
    assert question_only(read["train"], read["val"]).metrics["accuracy"] > constant + 5


# Captioning

VIDEOS = (
    ("a red ball rolls", "the ball rolls down"),
    ("a red ball rolls", "something moves"),
    ("a dog runs", "a dog runs over grass"),
    ("the red ball falls",),
)


def similarity(first: str, second: str) -> float:
    """Return CIDEr of a pair (Vedantam et al., eq. 2 and 3) over `VIDEOS`, without pooling anything."""
    total = 0.0
    for order in range(1, 5):

        def grams(text: str, order: int = order) -> list[str]:
            words = text.split()
            return [" ".join(words[start : start + order]) for start in range(len(words) - order + 1)]

        every = sorted({gram for many in VIDEOS for text in many for gram in grams(text)})
        idf = [-np.log(np.mean([any(gram in grams(text) for text in many) for many in VIDEOS])) for gram in every]
        one, other = (np.array([grams(text).count(gram) for gram in every]) * idf for text in (first, second))
        norms = np.linalg.norm(one) * np.linalg.norm(other)
        total += float(one @ other / norms) / 4 if norms else 0.0
    return total


@pytest.mark.parametrize("last", ["the red ball falls", "a dog runs", "something moves", "the ball rolls down"])
def test_the_typical_caption_is_the_one_most_similar_to_all_pair_by_pair(monkeypatch, last):
    videos = (*VIDEOS[:3], (last,) * 2)
    monkeypatch.setattr(sys.modules[__name__], "VIDEOS", videos)
    means = {
        text: np.mean([np.mean([similarity(text, other) for other in many]) for many in videos])
        for text in dict.fromkeys(text for many in videos for text in many)
    }
    best = max(means, key=lambda text: means[text])
    assert sorted(means.values())[-1] > sorted(means.values())[-2] + 1e-6, "the case decides nothing"
    assert typical_caption(videos) == best


def test_a_video_with_many_captions_counts_as_one():
    many = ("a dog runs fast",) * 50
    assert typical_caption([many, ("two men sing here",), ("two men sing here",)]) == "two men sing here"


def test_of_equally_typical_captions_the_first_is_taken_and_empty_ones_are_none():
    assert typical_caption([("", " "), (" b\tc ",), ("d e",)]) == "b c"
    with pytest.raises(ValueError, match="no caption with a word"):
        typical_caption([("",), ()])


def test_one_caption_is_scored_like_any_other():
    pytest.importorskip("pycocoevalcap")
    references = {"x": ["a red ball rolls"], "y": ["a dog sleeps", "the dog sleeps"]}
    found = one_caption(VIDEOS, references, meteor=False)
    assert found.name == '"a red ball rolls" for every video'
    said = dict.fromkeys(references, "a red ball rolls")
    assert found.metrics == corpus_scores(said, references, meteor=False).metrics
    assert "meteor" not in found.metrics


def test_a_corpus_of_captions_has_it_as_its_baseline():
    pytest.importorskip("pycocoevalcap")
    train = [Item(media=f"v{n}", id=str(n), captions=many) for n, many in enumerate(VIDEOS)]
    test = [Item(media="v9", id="9", captions=("a red ball rolls",)), Item(media="v9", id="10", captions=("a dog",))]
    found = baseline(corpus("captioning", train, test), "test")
    assert found == one_caption(VIDEOS, {"9": ("a red ball rolls",), "10": ("a dog",)}, meteor=False)
    assert found.metrics["rouge_l"] > 50


# Sentiment


def test_the_mean_of_the_training_scores_has_their_mean_deviation():
    right = [3.0, -1.0, 0.0, 2.0]
    found = mean_score([2.0, -1.0, 2.0], right)
    assert found.metrics["mae"] == pytest.approx(np.abs(np.array(right) - 1).mean())
    assert (found.metrics["corr"], found.metrics["acc7"]) == (0, 0)
    assert found.metrics["ba"] == pytest.approx(100 * 2 / 3)


def test_the_majority_sign_is_not_the_sign_of_the_mean():
    train, right = [3.0, -0.5, -0.5, 0.0], [-1.0, -2.0, 1.0, 0.0]
    assert majority_sign(train, right).metrics["ba"] == pytest.approx(100 * 2 / 3)
    assert mean_score(train, right).metrics["ba"] == pytest.approx(100 / 3)
    assert set(majority_sign(train, right).metrics) == {"ba", "f1", "ba_nonneg", "f1_nonneg"}
    assert majority_sign([1.0, -1.0], right).metrics["ba"] == pytest.approx(100 / 3)
