"""The tasks that core brings declare what its metrics return, and the plugin guide lists them."""

from __future__ import annotations

import re

import numpy as np
import pytest

from meltr import builtin
from meltr.metrics.classification import topk_accuracy
from meltr.video import plugin
from meltr.video.tasks.captions import corpus_scores
from meltr.video.tasks.regression import sentiment_metrics
from meltr.video.tasks.retrieval import retrieval_metrics
from places import ROOT

TASKS = {task.name: task for module in (builtin, plugin) for task in module.register_tasks()}
GUIDE = ROOT / "docs" / "plugins.md"


def caption_metrics():
    pytest.importorskip("pycocoevalcap")
    found = corpus_scores({"a": "a man"}, {"a": ["a man"]}, meteor=False)
    return [*found.metrics, *found.skipped]


@pytest.mark.parametrize(
    ("task", "metrics"),
    [
        ("classification", lambda: topk_accuracy(np.eye(6), range(6))),
        ("action", lambda: topk_accuracy(np.eye(6), range(6))),
        ("retrieval", lambda: retrieval_metrics(np.eye(6))),
        ("captioning", caption_metrics),
        ("sentiment", lambda: sentiment_metrics([1.0, -1.0], [1.0, 2.0])),
    ],
)
def test_core_computes_every_metric_that_its_tasks_declare(task, metrics):
    assert set(TASKS[task].metrics) <= set(metrics())


def test_the_error_of_sentiment_is_to_be_small():
    assert {name for name, task in TASKS.items() if not task.higher_is_better} == {"sentiment"}


def test_the_plugin_guide_lists_them_with_their_metrics_in_order():
    if not GUIDE.exists():
        pytest.skip("docs/plugins.md is not beside the package")
    rows = re.findall(r"^ +\| (`[^|]*) \| (`[^|]*) \|$", GUIDE.read_text(encoding="utf-8"), re.M)
    listed = {
        name: tuple(re.findall(r"`([^`]+)`", metrics))
        for names, metrics in rows
        for name in re.findall(r"`(\w+)`", names)
    }
    assert listed == {name: task.metrics for name, task in TASKS.items()}
