"""The loop behind frame caches, features and codes: what is there stays, failures are noted, a break is told."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from meltr.errors import UserError
from meltr.video.extraction import FillReport, attempt, check_same, fill


class Shelf:
    """Results in memory."""

    def __init__(self, **held: int) -> None:
        self.held, self.failed, self.closed = dict(held), {}, []

    def __contains__(self, key: str) -> bool:
        return key in self.held

    def add(self, key: str, result: int) -> None:
        self.held[key] = result

    def fail(self, key: str, reason: str) -> None:
        self.failed[key] = reason

    def close(self, *, complete: bool) -> None:
        self.closed.append(complete)


class Kind:
    def __init__(self, name: str) -> None:
        self.name = name

    def text(self) -> str:
        return self.name


def root(key: str, source: object) -> int:
    if not isinstance(source, int):
        raise UserError(f"{key} is damaged.")
    if source < 0:
        raise ArithmeticError("no root")
    return round(source**0.5)


MAKE = partial(attempt, work=root)


def test_only_what_is_lacking_is_made_in_order():
    shelf, seen = Shelf(b=7), []
    report = fill({"c": 9, "b": 4, "a": 1}, shelf, MAKE, progress=lambda *numbers: seen.append(numbers))
    assert report == FillReport(3, 2, {})
    assert list(shelf.held.items()) == [("b", 7), ("c", 3), ("a", 1)]
    assert seen == [(1, 3, 0), (2, 3, 0), (3, 3, 0)]
    assert shelf.closed == [True]


def test_failures_are_noted_and_tried_again():
    shelf = Shelf()
    assert fill({"a": 1, "b": None, "c": -4}, shelf, MAKE).added == 1
    assert shelf.failed == {"b": "b is damaged.", "c": "c: ArithmeticError: no root"}
    assert fill({"a": 1, "b": 4, "c": -4}, shelf, MAKE) == FillReport(3, 1, {"c": "c: ArithmeticError: no root"})
    assert fill({}, Shelf(), MAKE) == FillReport(0, 0, {})


def test_a_reason_names_the_file_where_there_is_one():
    def broken(key: str, source: object) -> int:
        raise OSError("gone")

    made = dict(attempt({"a": Path("videos/a.mp4"), "b": 3}, broken))
    assert made == {"a": f"{Path('videos/a.mp4')}: OSError: gone", "b": "b: OSError: gone"}


def test_nothing_but_failures_is_an_error_and_the_store_is_closed_first():
    shelf = Shelf()
    with pytest.raises(UserError, match=r"None of the 2 videos can be decoded\. The first, a: a is damaged"):
        fill({"a": None, "b": None}, shelf, MAKE)
    assert (set(shelf.failed), shelf.closed) == ({"a", "b"}, [True])


def test_a_store_is_told_that_the_work_was_broken_off():
    def interrupt(done: int, total: int, failed: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    shelf = Shelf()
    with pytest.raises(KeyboardInterrupt):
        fill({"a": 1, "b": 4, "c": 9}, shelf, MAKE, progress=interrupt)
    assert (shelf.held, shelf.closed) == ({"a": 1, "b": 2}, [False])


def test_a_store_of_another_kind_is_refused():
    red = Kind("red ones")
    check_same(Path("shelf"), red, red)
    with pytest.raises(UserError, match=r"shelf holds books of red ones, but blue ones were requested\.") as error:
        check_same(Path("shelf"), red, Kind("blue ones"), of="books of")
    assert error.value.hint == "Choose another place, or delete this one."
