"""Progress of a long count: plain lines in a log, a line that moves on a terminal, nothing where it is unwanted."""

from __future__ import annotations

import io

import pytest

from meltr.progress import ProgressCounter


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_counter_writes_a_line_every_few_seconds():
    stream, times = io.StringIO(), iter([0.0, 1.0, 4.0, 5.0, 6.0])
    with ProgressCounter("videos", stream=stream, clock=lambda: next(times)) as counter:
        for done, failed in ((1000, 0), (1010, 0), (1040, 1), (1050, 1), (2000, 1)):
            counter(done, 2000, failed)
    assert stream.getvalue().splitlines() == [
        "videos 1,000/2,000 (50%)",
        "videos 1,050/2,000 (52%)  1 failed  10.0 per second  ETA 1:35",
        "videos 2,000/2,000 (100%)  1 failed  166.7 per second  ETA 0:00",
    ]


def test_a_counter_draws_on_a_terminal_and_clears_its_line(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with ProgressCounter("videos", stream=stream) as counter:
        counter(1, 2)
    assert "videos 1/2 (50%)" in stream.getvalue()
    assert stream.getvalue().endswith("\x1b[2K")


def test_a_quiet_counter_is_silent():
    stream = io.StringIO()
    with ProgressCounter("videos", quiet=True, stream=stream) as counter:
        counter(2, 2)
    assert stream.getvalue() == ""


def test_a_terminal_only_counter_writes_no_lines_in_a_log(monkeypatch):
    stream = io.StringIO()
    with ProgressCounter("videos", lines=False, stream=stream) as counter:
        counter(1, 2)
        counter(2, 2)
    assert stream.getvalue() == ""
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    with ProgressCounter("videos", lines=False, stream=terminal) as counter:
        counter(1, 2)
    assert "videos 1/2 (50%)" in terminal.getvalue()


@pytest.mark.parametrize("quiet", [True, False])
def test_nothing_is_drawn_before_something_is_counted(monkeypatch, quiet):
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    with ProgressCounter("videos", quiet=quiet, stream=terminal):
        pass
    assert terminal.getvalue() == ""
