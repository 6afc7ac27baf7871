"""Baselines that never look at the video; they are printed beside a result.

They are fitted on the training split of a `meltr.video.corpus.Corpus` and evaluated on another split. A model that does
not beat them has learned nothing from its videos.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from meltr.video.corpus import Corpus, Item
from meltr.video.tasks.captions import Tokens, corpus_scores
from meltr.video.tasks.regression import sentiment_metrics
from meltr.video.tasks.retrieval import chance
from meltr.video.tasks.typical_caption import typical_caption

OFTEN = 3
"""A question that occurs at least this often in training is answered with its most frequent answer."""

SIGN_METRICS = ("ba", "f1", "ba_nonneg", "f1_nonneg")
"""The sentiment metrics that depend only on the sign."""

WORDS = 10_000
"""Number of words and word pairs that naive Bayes uses: the most frequent ones."""


@dataclass(frozen=True)
class Baseline:
    """A trivial baseline and its metrics.

    Args:
        name: Its name, for the line beside a result.
        metrics: Name -> value, under the names that the task declares.
    """

    name: str
    metrics: Mapping[str, float]


def baseline(corpus: Corpus, split: str) -> Baseline:
    """Return the baseline of the corpus' task on one of its splits.

    Args:
        corpus: A corpus for ``qa``, ``action``, ``retrieval``, ``captioning`` or ``sentiment``; captions are scored
            unchanged, and without METEOR, which takes seconds to start.
        split: The split to evaluate, not empty.

    Raises:
        ValueError: If the task is not one of these, or there is no such split.
    """
    items = corpus.splits.get(split, ())
    if not items:
        raise ValueError(f"{corpus.dataset} has no examples in split {split!r}")
    if corpus.task == "retrieval":
        return Baseline("chance", chance(len(items), [len(item.captions) for item in items]))
    if corpus.task == "action":
        return most_frequent(corpus.splits["train"], items)
    if corpus.task == "qa":
        return question_only(corpus.splits["train"], items)
    if corpus.task == "captioning":
        train = [item.captions for item in corpus.splits["train"]]
        return one_caption(train, {item.id: item.captions for item in items}, meteor=False)
    if corpus.task == "sentiment":
        scores = ([item.score or 0.0 for item in part] for part in (corpus.splits["train"], items))
        return mean_score(*scores)
    raise ValueError(f"no baseline for task {corpus.task!r}")


def one_caption(
    train: Sequence[Sequence[str]],
    references: Mapping[str, Sequence[str]],
    *,
    tokens: Tokens = "whitespace",
    meteor: bool = True,
) -> Baseline:
    """Return the caption metrics of the most typical training caption, used for every video.

    Args:
        train: The captions of each training video, in the same form as the model's captions.
        references: Video -> its reference captions.
        tokens: See `meltr.video.tasks.captions.corpus_scores`, which may raise other errors.
        meteor: As `tokens`.

    Raises:
        ValueError: If no training video has a caption.
    """
    said = typical_caption(train)
    scores = corpus_scores(dict.fromkeys(references, said), references, tokens=tokens, meteor=meteor)
    return Baseline(f'"{said}" for every video', scores.metrics)


def mean_score(train: Sequence[float], right: Sequence[float]) -> Baseline:
    """Return the sentiment metrics of predicting the mean of the training scores."""
    return Baseline("training mean", sentiment_metrics(np.full(len(right), np.mean(train)), right))


def majority_sign(train: Sequence[float], right: Sequence[float]) -> Baseline:
    """Return the binary metrics of predicting the most frequent sign of the training scores.

    Error and correlation are not defined for it. Zeros among the training scores count for neither sign; in a tie, the
    sign is positive.
    """
    sign = 1.0 if np.sign(train).sum() >= 0 else -1.0
    metrics = sentiment_metrics(np.full(len(right), sign), right)
    return Baseline("majority sign", {name: metrics[name] for name in SIGN_METRICS})


def most_frequent(train: Sequence[Item], items: Sequence[Item]) -> Baseline:
    """Return top-1 and top-5 accuracy of the most frequent training classes; in a tie, the first class."""
    order = [label for label, _ in Counter(item.label for item in train).most_common()]
    metrics = {f"top{k}": 100 * float(np.mean([item.label in order[:k] for item in items])) for k in (1, 5)}
    return Baseline("most frequent class", metrics)


def question_only(train: Sequence[Item], items: Sequence[Item]) -> Baseline:
    """Return the accuracy of answering without the video.

    Open-ended: the most frequent training answer to the same question, if it occurs at least `OFTEN` times; otherwise
    naive Bayes on its words and word pairs. Multiple choice: the choice that was most often correct when offered.
    """
    if any(item.choices for item in train):
        guesses = favourite_choices(train, items)
        right = [guess == item.correct for guess, item in zip(guesses, items, strict=True)]
        return Baseline("favourite choice, without the video", {"accuracy": 100 * float(np.mean(right))})
    answers = answer_blindly(train, [item.question or "" for item in items])
    right = [answer == item.answer for answer, item in zip(answers, items, strict=True)]
    return Baseline("question without the video", {"accuracy": 100 * float(np.mean(right))})


def answer_blindly(train: Sequence[Item], questions: Sequence[str]) -> list[str]:
    """Return an answer to each question, learned from the questions and answers of `train`."""
    bayes = _NaiveBayes([item.question or "" for item in train], [item.answer or "" for item in train])
    asked: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for item in train:
        asked[_normal(item.question or "")][item.answer or ""] += 1
    found = []
    for question in questions:
        known = asked.get(_normal(question), Counter())
        found.append(known.most_common(1)[0][0] if known.total() >= OFTEN else bayes.answer(question))
    return found


def favourite_choices(train: Iterable[Item], items: Sequence[Item]) -> list[int]:
    """Return for each item the index of the choice with the highest rate of being correct when offered in `train`.

    The rate is smoothed towards chance: (right + 1) / (offered + number of choices). A choice that was never offered
    counts as chance.
    """
    offered: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for item in train:
        offered.update(item.choices)
        if item.correct is not None:
            right[item.choices[item.correct]] += 1
    return [
        int(np.argmax([(right[choice] + 1) / (offered[choice] + len(item.choices)) for choice in item.choices]))
        for item in items
    ]


class _NaiveBayes:
    """Multinomial naive Bayes on words and word pairs, with add-one smoothing."""

    def __init__(self, questions: Sequence[str], answers: Sequence[str]) -> None:
        counts = Counter(answers)
        self._answers = list(counts)
        index = {answer: number for number, answer in enumerate(self._answers)}
        bags = [_features(question) for question in questions]
        often = Counter(word for bag in bags for word in bag).most_common(WORDS)
        self._words = {word: number for number, (word, _) in enumerate(often)}
        table = np.ones((len(self._words), len(self._answers)), dtype=np.float32)
        for bag, answer in zip(bags, answers, strict=True):
            np.add.at(table, ([self._words[word] for word in bag if word in self._words], index[answer]), 1)
        table /= table.sum(axis=0)
        self._likelihood = np.log(table, out=table)
        self._prior: npt.NDArray[np.float64] = np.log([counts[answer] for answer in self._answers])

    def answer(self, question: str) -> str:
        """Return the most likely answer; words that did not occur in training are skipped."""
        known = [self._words[word] for word in _features(question) if word in self._words]
        return self._answers[int(np.argmax(self._prior + self._likelihood[known].sum(axis=0)))]


def _normal(question: str) -> str:
    return " ".join(re.findall(r"[a-z0-9']+", question.lower()))


def _features(question: str) -> list[str]:
    words = ["<start>", *_normal(question).split()]
    return words[1:] + [" ".join(pair) for pair in pairwise(words)]
