"""Metrics of text classification, and the rows of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from meltr.context import Evaluation, Prediction, PredictRequest
from meltr.errors import UserError
from meltr.metrics.classification import macro_f1
from meltr.texts.corpus import TextCorpus, TextItem


def evaluation(corpus: TextCorpus, items: Sequence[TextItem], predicted: Sequence[int]) -> Evaluation:
    """Return the metrics of the task ``text-classification``, in percent, a row per text, and the majority baseline.

    Args:
        corpus: Names the classes.
        items: The texts.
        predicted: Index of the predicted class of every text.
    """
    right = [corpus.index_of(item.label) for item in items]
    train = [corpus.index_of(item.label) for item in corpus.splits["train"]]
    most = max(range(len(corpus.classes)), key=train.count)
    rows = tuple(
        {"id": item.id, "text": item.text, "label": item.label, "predicted": corpus.classes[guess]}
        for item, guess in zip(items, predicted, strict=True)
    )
    return Evaluation(
        metrics=text_metrics(predicted, right),
        count=len(items),
        predictions=rows,
        baselines={f"always {corpus.classes[most]!r}": text_metrics([most] * len(right), right)},
    )


def text_metrics(predicted: Sequence[int], right: Sequence[int]) -> dict[str, float]:
    """Return ``accuracy`` and ``macro_f1`` in percent, of classes by index (-100: not among those of training)."""
    hits = sum(guess == truth for guess, truth in zip(predicted, right, strict=True))
    return {"accuracy": 100 * hits / len(right), "macro_f1": macro_f1(predicted, right)}


def texts_of(request: PredictRequest) -> tuple[str, ...]:
    """Return the texts of a request.

    Raises:
        UserError: If it has none, or asks for anything else.
    """
    hint = "For example: meltr predict RUN --text 'the film was great'"
    given = {"--video or --image": request.media, "--question": request.question, "--search": request.search}
    for option, value in (given | {"--choices": request.choices}).items():
        if value:
            raise UserError(f"This run reads texts: it cannot use {option}.", hint)
    if not request.text:
        raise UserError("This run reads texts: it needs --text.", hint)
    return request.text


def predicted(
    texts: Sequence[str], probabilities: Sequence[Sequence[float]], classes: Sequence[str], *, top: int
) -> Prediction:
    """Return the most probable classes of every text, best first.

    Args:
        texts: The texts.
        probabilities: One row per text, one column per class.
        classes: Names of the classes.
        top: Classes per text.
    """
    rows: list[dict[str, Any]] = []
    for text, row in zip(texts, probabilities, strict=True):
        best = sorted(range(len(classes)), key=lambda index: -row[index])[:top]
        rows += [{"text": text, "label": classes[index], "probability": float(row[index])} for index in best]
    return Prediction(tuple(rows), what="most probable classes")
