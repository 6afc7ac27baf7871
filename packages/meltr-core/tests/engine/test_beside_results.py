"""What a run tells beside its results: trivial baselines of every evaluation, and notes about data and model."""

from __future__ import annotations

import io
import json
import re
from contextlib import redirect_stderr

import pytest
from rich.console import Console

import meltr
from changed_toy import BUILD_DATA, BUILD_MODEL, EVALUATION, changed_toy, run_toy
from command_line import call
from meltr.cli._jobs import summary
from meltr.context import Evaluation
from meltr.observers import text
from meltr.observers.console import ConsoleObserver, results_table

BESIDE = {"always inner": {"top1": 12.5}, "chance": {"top1": 50.0, "top5": 100.0}}
WITH_BASELINES = (EVALUATION, EVALUATION[:-1] + f", baselines={BESIDE!r})")
RESULTS = {
    "run": "demo",
    "metric": "top1",
    "validation": None,
    "test": {"metrics": {"top1": 78.25, "top5": 96.5}, "count": 200, "baselines": BESIDE},
}


def shown(results) -> list[list[str]]:
    """Return the cells of the console's table, row by row."""
    stream = io.StringIO()
    Console(file=stream, width=100).print(results_table(results))
    return [re.split(r"\s*[│┃]\s*", line)[1:-1] for line in stream.getvalue().splitlines() if re.match("[│┃]", line)]


def test_the_table_has_a_column_for_every_baseline_beside_its_split():
    assert shown(RESULTS) == [
        ["metric", "test", "always inner", "chance"],
        ["top1", "78.25", "12.50", "50.00"],
        ["top5", "96.50", "", "100.0"],
        ["examples", "200", "", ""],
    ]


def test_an_evaluation_is_one_line_with_its_baselines():
    evaluation = Evaluation({"top1": 78.25}, 200, baselines=BESIDE)
    expected = "step 40  test  top1 78.25  (200 examples); always inner: top1 12.50; chance: top1 50.00  top5 100.0"
    assert text.evaluation_line("test", 40, evaluation) == expected


def test_the_log_ends_with_them():
    assert text.results_lines(RESULTS)[:3] == [
        "result  test  top1 78.25  top5 96.50",
        "result  test, always inner  top1 12.50",
        "result  test, chance  top1 50.00  top5 100.0",
    ]


def test_the_last_line_of_a_run_has_those_with_the_primary_metric():
    assert summary(RESULTS, None) == "test top1 = 78.25 (always inner: 12.5, chance: 50)"
    other = {**RESULTS, "metric": "top5"}
    assert summary(other, None) == "test top5 = 96.5 (chance: 100)"


def test_results_of_before_there_were_baselines_can_be_shown():
    old = {**RESULTS, "test": {"metrics": {"top1": 78.25}, "count": 200}}
    assert shown(old) == [["metric", "test"], ["top1", "78.25"], ["examples", "200"]]
    assert text.results_lines(old)[0] == "result  test  top1 78.25"
    assert summary(old, None) == "test top1 = 78.25"


def test_a_whole_run_tells_its_baselines_everywhere(tmp_path):
    results = run_toy(changed_toy(tmp_path, WITH_BASELINES), tmp_path / "run", combiner="sum")
    line = summary(results, tmp_path / "run")
    parts = re.findall(r"(test|validation) top1 = [\d.]+ \(always inner: 12.5, chance: 50\)", line)
    assert parts == ["test", "validation"]
    stored = json.loads((tmp_path / "run" / "results.json").read_text())
    assert stored["test"]["baselines"] == stored["validation"]["baselines"] == BESIDE
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("examples); always inner: top1 12.50; chance:") == 2
    assert log.count("result  test, chance  top1 50.00") == 1
    again = call("evaluate", "--trust", tmp_path / "run")
    assert again.exit_code == 0, again.output
    assert again.stdout.splitlines()[3:] == ["  always inner: top1 12.50", "  chance: top1 50.00  top5 100.0"]


# Notes

NOTED = (
    (BUILD_DATA, BUILD_DATA + '        context.notes.append("3 videos are missing")\n'),
    (
        BUILD_MODEL,
        BUILD_MODEL.replace("self", "self, context") + '        context.notes.extend(["loaded [all]", "no head"])\n',
    ),
)


class Listener:
    def __init__(self):
        self.heard = []

    @meltr.hookimpl
    def on_run_start(self):
        self.heard.append("start")

    @meltr.hookimpl
    def on_message(self, level, message):
        self.heard.append((level, message))

    @meltr.hookimpl
    def on_step_end(self):
        self.heard.append("step")


def test_notes_are_told_once_after_the_start_and_before_the_first_step(tmp_path):
    plugin, listener = changed_toy(tmp_path, *NOTED), Listener()
    run_toy(plugin, tmp_path / "run", observers=[listener], combiner="sum")
    notes = [("info", note) for note in ("3 videos are missing", "loaded [all]", "no head")]
    assert listener.heard[:4] == ["start", *notes]
    assert listener.heard.count(notes[0]) == 1
    assert listener.heard[4:].count("step") == 8
    log = (tmp_path / "run" / "log.txt").read_text()
    assert [log.count(note) for _, note in notes] == [1, 1, 1]


def test_a_resumed_run_tells_its_own(tmp_path):
    plugin = changed_toy(tmp_path, *NOTED)
    run_toy(plugin, tmp_path / "run", combiner="sum")
    again = Listener()
    run_toy(plugin, tmp_path / "run", resume=True, observers=[again], combiner="sum")
    told = [message for _, message in (each for each in again.heard if each not in ("start", "step"))]
    assert told[:3] == ["3 videos are missing", "loaded [all]", "no head"]
    assert told[3] == "resumed at step 8 of 8"


@pytest.mark.parametrize("quiet", [False, True])
def test_the_console_shows_them_as_they_are_unless_it_is_quiet(tmp_path, quiet):
    plugin, stream = changed_toy(tmp_path, *NOTED), io.StringIO()
    with redirect_stderr(stream):
        run_toy(plugin, None, observers=[ConsoleObserver(quiet=quiet)], combiner="sum")
    lines = stream.getvalue().splitlines()
    assert [note in lines for note in ("3 videos are missing", "loaded [all]", "no head")] == [not quiet] * 3
