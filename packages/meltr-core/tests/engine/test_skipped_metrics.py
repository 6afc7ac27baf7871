"""A metric that cannot be computed here is skipped with its reason, everywhere where metrics are shown; never 0."""

from __future__ import annotations

import io
import json
import re

import pytest
from rich.console import Console

from changed_toy import EVALUATION, changed_toy, run_toy
from command_line import call
from meltr.cli._jobs import summary
from meltr.context import Evaluation
from meltr.errors import PluginError
from meltr.observers import text
from meltr.observers.console import results_table

SKIPPING = EVALUATION.replace(', "top5": 100.0', "")[:-1] + ', skipped={"top5": "no Java"})'
METRICS = {"top1": 78.25}
RESULTS = {
    "run": "demo",
    "metric": "top1",
    "validation": {"metrics": {"top1": 80.0, "top5": 95.0}, "count": 9, "skipped": {}},
    "test": {"metrics": METRICS, "count": 200, "baselines": {"chance": {"top1": 50.0}}, "skipped": {"top5": "no Java"}},
}


def test_the_table_has_the_reason_where_the_value_would_be():
    stream = io.StringIO()
    Console(file=stream, width=100).print(results_table(RESULTS))
    lines = [line for line in stream.getvalue().splitlines() if re.match("[│┃]", line)]
    assert [re.split(r"\s*[│┃]\s*", line)[1:-1] for line in lines] == [
        ["metric", "validation", "test", "chance"],
        ["top1", "80.00", "78.25", "50.00"],
        ["top5", "95.00", "skipped (no Java)", ""],
        ["examples", "9", "200", ""],
    ]


def test_lines_have_it_after_the_metrics():
    evaluation = Evaluation(METRICS, 200, skipped={"top5": "no Java"})
    expected = "step 40  test  top1 78.25  top5 skipped (no Java)  (200 examples)"
    assert text.evaluation_line("test", 40, evaluation) == expected
    assert text.results_lines(RESULTS)[1] == "result  test  top1 78.25  top5 skipped (no Java)"


def test_the_table_of_several_seeds_has_a_row_for_what_none_of_them_has():
    value = {"mean": 78.25, "std": 0.0, "n": 2}
    several = {"metric": "top1", "seeds": [0, 1], "test": {"top1": value}, "validation": {}}
    rows = summary({**several, "runs": [RESULTS, RESULTS]}, None).splitlines()
    assert [re.split(r"\s\s+", row.strip()) for row in rows if "skipped" in row] == [
        ["test", "top5", "skipped (no Java)", "0"]
    ]
    other = {**RESULTS, "test": {"metrics": {"top1": 1.0, "top5": 2.0}, "count": 200}}
    assert "skipped" not in summary({**several, "runs": [RESULTS, other]}, None)


def test_a_whole_run_tells_it_everywhere(tmp_path):
    run_toy(changed_toy(tmp_path, (EVALUATION, SKIPPING)), tmp_path / "run", combiner="sum")
    stored = json.loads((tmp_path / "run" / "results.json").read_text())
    for split in ("validation", "test"):
        assert stored[split]["skipped"] == {"top5": "no Java"}
        assert list(stored[split]["metrics"]) == ["top1"]
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("top5 skipped (no Java)") == 4
    again = call("evaluate", "--trust", tmp_path / "run")
    assert again.exit_code == 0, again.output
    assert re.search(r"^\s*top5\s+skipped \(no Java\)$", again.stdout, re.M)
    assert json.loads((tmp_path / "run" / "evaluation-test.json").read_text())["skipped"] == {"top5": "no Java"}


@pytest.mark.parametrize(
    ("skipped", "message"),
    [
        ('{"top1": "no Java", "top5": "no Java"}', r"returned \['top1'\], but also lists them as skipped"),
        ('{"other": "no Java"}', r"returned no \['top5'\]"),
        ('{"top5": 0.0}', "must give a reason for each skipped metric, got {'top5': 0.0}"),
        ('{"top5": ""}', "must give a reason for each skipped metric, got {'top5': ''}"),
    ],
)
def test_an_adapter_that_contradicts_itself_is_told(tmp_path, skipped, message):
    changed = SKIPPING.replace('{"top5": "no Java"}', skipped)
    with pytest.raises(PluginError, match=message):
        run_toy(changed_toy(tmp_path, (EVALUATION, changed)), None, combiner="sum")


def test_the_metric_that_chooses_the_checkpoint_cannot_be_skipped(tmp_path):
    changed = 'meltr.Evaluation({"top5": 100.0}, len(label), skipped={"top1": "no Java"})'
    with pytest.raises(PluginError, match="skipped 'top1', which chooses the best checkpoint"):
        run_toy(changed_toy(tmp_path, (EVALUATION, changed)), None, combiner="sum")
