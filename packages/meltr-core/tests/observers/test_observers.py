"""Observers: the metrics file survives kills and resumes; console, log and TensorBoard show what happened."""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pluggy
import pytest

from meltr.context import Data, Evaluation, StepRecord
from meltr.errors import UserError
from meltr.files import decode, encode
from meltr.hookspecs import PROJECT, ObserverSpecs
from meltr.observers import text
from meltr.observers.console import ConsoleObserver, losses_table, results_table
from meltr.observers.jsonl import MetricsWriter
from meltr.observers.logfile import LogObserver
from meltr.observers.tensorboard import TensorboardObserver
from meltr.progress import duration
from meltr.specs import RunSpec, TrainSpec

LOSSES = ("ce", "rotation")
RESULTS: dict[str, Any] = {
    "run": "demo",
    "metric": "top1",
    "validation": {"metrics": {"top5": 97.5, "top1": 79.25}, "count": 5000, "step": 40},
    "test": {"metrics": {"top5": 96.5, "top1": 78.25}, "count": 10000},
    "steps": 40,
    "seconds": 83.2,
    "examples_per_second": 1234.5,
    "peak_memory_mb": 2048.0,
}


class Batches:
    size = 1280

    def __len__(self) -> int:
        return 10

    def batches(self, epoch: int, start: int = 0) -> Iterator[Any]:
        return iter(())


def record(step: int, **changes: Any) -> StepRecord:
    values: dict[str, Any] = {
        "step": step,
        "epoch": step / 10,
        "losses": {"ce": 1.25, "rotation": 0.5},
        "sensitivities": {"ce": 0.9, "rotation": -0.1},
        "combined": 1.1,
        "lr": 1e-3,
        "examples_per_second": 1234.0,
        "memory_mb": 812.0,
        "eta_seconds": 65.0,
    }
    return StepRecord(**(values | changes))


def context(run_dir: Path | None) -> Any:
    spec = RunSpec(backbone="b", task="classification", dataset="d", losses=LOSSES, train=TrainSpec(epochs=4))
    return SimpleNamespace(spec=spec, run_dir=run_dir, device="cpu", losses=LOSSES)


def run_through(observer: object, run_dir: Path | None) -> None:
    """Drive the hooks as the engine does, by pluggy: argument names that a hook does not offer would raise."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(ObserverSpecs)
    manager.register(observer)
    manager.check_pending()
    hook, told = manager.hook, context(run_dir)
    meta = {"classes": 10, "splits": {"train": 45000, "validation": 5000}, "names": list("abcdefghij"), "full": True}
    hook.on_run_start(context=told, data=Data(train=Batches(), validation=None, meta=meta))
    hook.on_message(context=told, level="warning", message="no [bf16] here")
    for step in (10, 20, 30, 40):
        products = {"ce": 1e-3, "rotation": -2e-4} if step > 10 else None
        hook.on_step_end(context=told, record=record(step, gradient_products=products, outer_gradient_norm=0.1))
    hook.on_evaluation(context=told, split="validation", step=40, evaluation=Evaluation({"top1": 79.25}, 5000))
    if run_dir is not None:
        hook.on_checkpoint(context=told, path=run_dir / "checkpoints" / "step-000040")
    hook.on_run_end(context=told, results=RESULTS)


def write(writer: MetricsWriter, first: int, last: int) -> None:
    """Write what a run does from step `first` to `last`, with an evaluation every fourth step."""
    for step in range(first, last + 1):
        writer.train(record(step))
        if step % 2 == 0:
            writer.outer(step, step / 10, {"ce": step * 1e-3, "rotation": -1e-3}, 0.5)
        if step % 4 == 0:
            writer.evaluation(step, step / 10, "validation", Evaluation({"top1": float(step)}, 100))
    if last == 12:
        writer.evaluation(8, 0.8, "test", Evaluation({"top1": 8.0}, 100))
    writer.close()


@pytest.mark.parametrize("killed_at", [8, 9, 11, 12])
@pytest.mark.parametrize("cut", [0, 1, 30])
def test_a_resumed_file_equals_an_uninterrupted_one(tmp_path: Path, killed_at: int, cut: int) -> None:
    write(MetricsWriter(tmp_path / "whole.jsonl"), 1, 12)
    path = tmp_path / "resumed.jsonl"
    write(MetricsWriter(path), 1, killed_at)
    if killed_at > 8:
        path.write_bytes(path.read_bytes()[: -cut or None])
    write(MetricsWriter(path, resume_step=8), 9, 12)
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert [item.name for item in tmp_path.iterdir() if item.suffix != ".jsonl"] == []


def test_what_is_already_there_is_not_written_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(MetricsWriter(path), 1, 8)
    before = path.read_bytes()
    with MetricsWriter(path, resume_step=8) as writer:
        writer.evaluation(8, 0.8, "validation", Evaluation({"top1": 8.0}, 100))
    assert path.read_bytes() == before


def test_a_new_run_starts_an_empty_file_and_resuming_without_one_works(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "metrics.jsonl"
    write(MetricsWriter(path, resume_step=0), 1, 2)
    assert len(path.read_text().splitlines()) == 3
    MetricsWriter(path).close()
    assert path.read_text() == ""


def test_lines_are_whole_as_soon_as_they_are_written(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    writer.train(record(1))
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line["kind"] == "train"
    assert line["sensitivities"] == {"ce": 0.9, "rotation": -0.1}
    assert "eta_seconds" not in line
    writer.close()
    writer.close()


def test_numbers_that_json_lacks_survive(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path / "m.jsonl") as writer:
        writer.train(record(1, combined=float("inf"), losses={"ce": float("nan"), "rotation": -float("inf")}))

    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is not JSON")

    line = decode(json.loads((tmp_path / "m.jsonl").read_text(), parse_constant=refuse))
    assert line["combined"] == float("inf")
    assert line["losses"]["rotation"] == -float("inf")
    assert line["losses"]["ce"] != line["losses"]["ce"]
    assert encode({"a": (1, True, None, "x", 0.5)}) == {"a": [1, True, None, "x", 0.5]}


def test_plain_console_is_rate_limited_and_tells_the_result(tmp_path: Path) -> None:
    stream, times = io.StringIO(), iter([0.0, 1.0, 5.5, 6.0])
    run_through(ConsoleObserver(stream=stream, clock=lambda: next(times)), tmp_path / "demo")
    lines = stream.getvalue().splitlines()
    steps = [line.split()[1] for line in lines if "ETA" in line]
    assert steps == ["10/40", "30/40", "40/40"]
    shown = stream.getvalue()
    for expected in (
        "classes 10",
        "splits (train 45,000, validation 5,000)",
        "and 2 more]",
        "full yes",
        "warning: no [bf16] here",
        "ce 1.250 (a 0.9000)",
        "812 MiB",
        "ETA 1:05",
        "step 40  validation  top1 79.25  (5,000 examples)",
        "78.25",
        "1:23 min",
        "step-000040",
    ):
        assert expected in shown
    assert "\x1b" not in shown


def test_quiet_console_writes_nothing(tmp_path: Path) -> None:
    stream = io.StringIO()
    run_through(ConsoleObserver(quiet=True, stream=stream), tmp_path)
    assert stream.getvalue() == ""


def test_console_keeps_standard_output_free(capsys: pytest.CaptureFixture[str]) -> None:
    run_through(ConsoleObserver(), None)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "step 40/40" in captured.err


def test_live_console_shows_a_bar_and_cleans_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    observer = ConsoleObserver(stream=stream)
    run_through(observer, tmp_path)
    shown = stream.getvalue()
    assert "40/40 (100%)" in shown
    assert "rotation" in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1
    observer.close()


def test_tables_put_the_primary_metric_first_and_leave_unknown_values_out() -> None:
    assert list(results_table(RESULTS).columns[0].cells) == ["top1", "top5", "examples"]
    table = losses_table(record(10, sensitivities={}))
    assert list(table.columns[2].cells) == ["", "", ""]


def test_log_file_tells_the_run(tmp_path: Path) -> None:
    run_through(LogObserver(), tmp_path)
    log = (tmp_path / "log.txt").read_text()
    assert log.count("ETA") == 4
    for expected in ("start  b / classification / d", "warning  no [bf16]", "checkpoint  ", "result  test  top5 96.50"):
        assert expected in log
    run_through(LogObserver(), None)


def test_tensorboard_writes_events(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_through(TensorboardObserver(), tmp_path)
    run_through(TensorboardObserver(), None)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"loss/ce", "sensitivity/rotation", "gradient_product/ce", "validation/top1", "loss/combined"} <= tags
    assert [event.step for event in events.Scalars("loss/ce")] == [10, 20, 30, 40]


def test_missing_tensorboard_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"meltr-core\[tensorboard\]"):
        TensorboardObserver()


@pytest.mark.parametrize(
    ("seconds", "shown"), [(5, "0:05"), (59.7, "1:00"), (3845, "1:04:05"), (float("inf"), "-"), (float("nan"), "-")]
)
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(79.25, "79.25"), (0.0, "0.000"), (1e-5, "1.00e-05"), (12345.0, "12345"), (float("nan"), "nan")],
)
def test_numbers(value: float, shown: str) -> None:
    assert text.number(value) == shown
