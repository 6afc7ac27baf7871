"""The tasks that core brings declare what its metrics return, and the plugin guide lists them."""

from __future__ import annotations

import re

import numpy as np
import pytest

from meltr import builtin
from meltr.engine.hooks import better
from meltr.metrics.classification import topk_accuracy
from meltr.texts import plugin as texts_plugin
from meltr.texts.results import text_metrics
from meltr.video import plugin
from meltr.video.tasks.captions import corpus_scores
from meltr.video.tasks.regression import sentiment_metrics
from meltr.video.tasks.retrieval import retrieval_metrics
from places import ROOT

TASKS = {task.name: task for module in (builtin, texts_plugin, plugin) for task in module.register_tasks()}
GUIDE = ROOT / "docs" / "plugins.md"


def caption_metrics(said):
    pytest.importorskip("pycocoevalcap")
    right = {"a": ["a man sings a song"], "b": ["two dogs run over grass"]}
    found = corpus_scores(dict(zip(right, said, strict=True)), right, meteor=False)
    return found.metrics | dict.fromkeys(found.skipped, 0.0)


PREDICTED = {
    "classification": (lambda scores: topk_accuracy(scores, range(6)), np.eye(6), 1 - np.eye(6)),
    "action": (lambda scores: topk_accuracy(scores, range(6)), np.eye(6), 1 - np.eye(6)),
    "text-classification": (lambda guesses: text_metrics(guesses, [0, 1, 2]), [0, 1, 2], [1, 2, 0]),
    "retrieval": (retrieval_metrics, np.eye(6), 1 - np.eye(6)),
    "captioning": (
        caption_metrics,
        ("a man sings a song", "two dogs run over grass"),
        ("two dogs run over grass", "a man sings a song"),
    ),
    "sentiment": (lambda scores: sentiment_metrics(scores, [1.0, 2.0]), [1.0, 2.0], [-1.0, 0.0]),
}
"""Task -> its metrics, what a perfect model predicts and what a bad one predicts."""


@pytest.mark.parametrize("task", PREDICTED)
def test_core_computes_every_metric_that_its_tasks_declare(task):
    metrics, perfect, _ = PREDICTED[task]
    assert set(TASKS[task].metrics) <= set(metrics(perfect))


@pytest.mark.parametrize("task", PREDICTED)
def test_the_metric_that_chooses_checkpoints_prefers_the_perfect_model(task):
    metrics, perfect, bad = PREDICTED[task]
    deciding = TASKS[task].metrics[0]
    assert better(metrics(perfect)[deciding], metrics(bad)[deciding], TASKS[task].higher_is_better)


def test_the_plugin_guide_lists_them_with_their_metrics_in_order():
    if not GUIDE.exists():
        pytest.skip("docs/plugins.md is not beside the package")
    rows = re.findall(r"^ +\| (`[^|]*) \| (`[^|]*) \|$", GUIDE.read_text(encoding="utf-8"), re.M)
    listed = {
        name: tuple(re.findall(r"`([^`]+)`", metrics))
        for names, metrics in rows
        for name in re.findall(r"`([\w-]+)`", names)
    }
    assert listed == {name: task.metrics for name, task in TASKS.items()}
