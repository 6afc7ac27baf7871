"""Evaluation against one example, and one pair, at a time, through the whole model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from meltr.context import Data, Evaluation, RunContext
from meltr.video import Split
from meltr_violet.adapter import VioletAdapter
from meltr_violet.model.violet import Violet

Make = Callable[..., RunContext]
MORE = {"options__eval_batch_size": 5, "options__pairs_per_pass": 7}


@pytest.fixture(autouse=True)
def _no_graph() -> Iterator[None]:
    with torch.no_grad():
        yield


def ready(context: RunContext) -> tuple[Data, Violet]:
    torch.manual_seed(3)
    adapter = VioletAdapter()
    data = adapter.build_data(context)
    return data, adapter.build_model(context, data).eval()


def evaluated(model: Violet, split: Split, context: RunContext) -> Evaluation:
    return VioletAdapter().evaluate(model, split, context)


def states(model: Violet, frames: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return the state of [CLS] for one clip and one text, (D,)."""
    return model(frames[None], ids[None])[0, -len(ids)]


def test_accuracy_of_open_ended_answers(make_context: Make) -> None:
    context = make_context(**MORE)
    data, model = ready(context)
    found = evaluated(model, data.test, context)
    right = 0
    for item, example, row in zip(data.test.items, data.test.examples(), found.predictions, strict=True):
        probabilities = model.answer(states(model, example["frames"], example["ids"])).softmax(0)
        said = data.meta["answers"][int(probabilities.argmax())]
        right += said == item.answer
        assert (row["predicted"], row["right"], row["question"]) == (said, item.answer, item.question)
        assert (row["id"], row["video"]) == (item.id, item.media)
        assert row["probability"] == pytest.approx(float(probabilities.max()), abs=1e-4)
    assert found.count == len(data.test.items) == data.meta["splits"]["test"]
    assert found.metrics == {"accuracy": pytest.approx(100 * right / found.count)}
    assert 0 < found.metrics["accuracy"] < 100
    (baseline,) = found.baselines.values()
    assert set(baseline) == {"accuracy"}


def test_an_answer_outside_the_vocabulary_is_wrong_whatever_is_said(make_context: Make) -> None:
    """Without its answer in the vocabulary, no question can be answered."""
    context = make_context()
    data, model = ready(context)
    data.test.encoder.labels.classes.clear()
    found = evaluated(model, data.test, context)
    assert found.metrics["accuracy"] == 0
    assert found.details["answers_outside_vocabulary"] == found.count


def test_accuracy_of_choices(make_context: Make) -> None:
    context = make_context("qa", "tgif-transition", options__text_length=40, **MORE)
    data, model = ready(context)
    found = evaluated(model, data.test, context)
    right = 0
    for item, example, row in zip(data.test.items, data.test.examples(), found.predictions, strict=True):
        scores = [float(model.choice(states(model, example["frames"], ids))) for ids in example["ids"]]
        said = item.choices[max(range(5), key=scores.__getitem__)]
        right += said == item.choices[item.correct]
        assert (row["predicted"], row["right"]) == (said, item.answer)
    assert found.metrics == {"accuracy": pytest.approx(100 * right / found.count)}
    assert found.details == {}


def test_top_accuracies_and_every_class_of_actions(make_context: Make) -> None:
    context = make_context("action", "kinetics400", options__text_length=3, **MORE)
    data, model = ready(context)
    names = data.meta["answers"]
    found = evaluated(model, data.test, context)
    best, of_class = [], {name: [] for name in names}
    for item, example in zip(data.test.items, data.test.examples(), strict=True):
        order = model.answer(states(model, example["frames"], example["ids"])).argsort(descending=True).tolist()
        place = order.index(names.index(item.label))
        best.append(place)
        of_class[item.label].append(place == 0)
    assert found.metrics["top1"] == pytest.approx(100 * sum(place < 1 for place in best) / len(best))
    assert found.metrics["top5"] == pytest.approx(100 * sum(place < 5 for place in best) / len(best))
    expected = {name: 100 * sum(hits) / len(hits) if hits else None for name, hits in of_class.items()}
    assert found.details["per_class"] == pytest.approx(expected, abs=0.01)
    assert {"label", "question"}.isdisjoint(found.predictions[0])


def rank(scores: list[float], right: int) -> int:
    """Return the place of `right` among the scores, from 1; of equals, the first comes first."""
    return 1 + sum(s > scores[right] or (s == scores[right] and i < right) for i, s in enumerate(scores))


def test_retrieval_metrics_from_one_pair_at_a_time(make_context: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    context = make_context("retrieval", "msrvtt-7k", data__validation=6, **MORE)
    data, model = ready(context)
    split, encoded = data.validation, []
    encode = model.encode_video
    monkeypatch.setattr(model, "encode_video", lambda frames: (encoded.append(len(frames)), encode(frames))[1])
    found = evaluated(model, split, context)
    items = split.items
    assert sum(encoded) == len(items)  # each clip once
    rows = [(number, caption) for number, item in enumerate(items) for caption in item.captions]
    assert (len(items), len(rows) > 6) == (6, True)
    clips = [split.encoder.video(item)["frames"] for item in items]
    scores = [
        [
            float(model.vtm(states(model, clip, split.encoder.text(items[owner], text)["ids"])).sigmoid())
            for clip in clips
        ]
        for owner, text in rows
    ]
    expected = summary([rank(row, owner) for row, (owner, _) in zip(scores, rows, strict=True)])
    back = []
    for video in range(len(items)):
        own = [number for number, (owner, _) in enumerate(rows) if owner == video]
        others = [number for number in range(len(rows)) if number not in own]
        best = max(scores[number][video] for number in own)
        back.append(1 + sum(scores[number][video] > best for number in others))
    expected |= {f"v2t/{name}": value for name, value in summary(back).items()}
    assert found.metrics == pytest.approx(expected)
    assert found.count == len(rows)
    for row, (owner, caption), mine in zip(found.predictions, rows, scores, strict=True):
        assert (row["text"], row["video"]) == (caption, items[owner].media)
        assert row["first"] == items[mine.index(max(mine))].media
        assert row["score"] == pytest.approx(max(mine), abs=1e-4)


def summary(places: list[int]) -> dict[str, Any]:
    ordered, half = sorted(places), len(places) // 2
    median = ordered[half] if len(places) % 2 else (ordered[half - 1] + ordered[half]) / 2
    recalls = {f"r@{k}": 100 * sum(place <= k for place in places) / len(places) for k in (1, 5, 10)}
    return recalls | {"medr": median, "meanr": sum(places) / len(places)}


@pytest.mark.parametrize("choice", [("qa", "msvd"), ("retrieval", "msrvtt-9k")])
def test_rows_only_where_they_are_wanted(make_context: Make, choice: tuple[str, str]) -> None:
    context = make_context(*choice, options__save_predictions=False)
    data, model = ready(context)
    found = evaluated(model, data.test, context)
    assert found.predictions == ()
    assert evaluated(model, data.test, make_context(*choice)).metrics == found.metrics
