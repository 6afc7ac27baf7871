"""What a further column holds: told by its cells, said by the user, or refused."""

from __future__ import annotations

import math

import pytest

from meltr.errors import UserError
from meltr.texts.columns import Column, describe


@pytest.mark.parametrize(
    ("cells", "kind", "classes"),
    [
        (["film", "book", "film", "book"], "classes", ("book", "film")),
        (["0", "1", "1"], "classes", ("0", "1")),
        ([str(number % 10) for number in range(30)], "classes", tuple("0123456789")),
        (["0.5", "1", "2"], "number", ()),
        ([str(number) for number in range(101)] * 2, "number", ()),
        (["1e3", "2.5"], "number", ()),
    ],
)
def test_a_column_is_told_by_its_cells(cells: list[str], kind: str, classes: tuple[str, ...]) -> None:
    found = describe("c", cells, None)
    assert isinstance(found, Column)
    assert (found.kind, found.classes, found.outputs) == (kind, classes, len(classes) or 1)
    assert Column.from_json(found.as_json()) == found


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([f"text {number}" for number in range(300)], "300 different texts in 300 cells"),
        (["film", "book", "film"], "2 different texts in 3 cells"),
        (["3", "n/a", "4", "3"], "both numbers and texts"),
        ([str(number % 20) for number in range(60)], "20 different ones: classes, or a number"),
        ([str(number) for number in range(500)], "never repeat"),
        (["nan", "1", "2"], "both numbers and texts"),
    ],
)
def test_what_is_ambiguous_is_refused_and_can_be_said(cells: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        describe("c", cells, None)
    assert "--set 'columns={c: " in str(refused.value.hint)
    said = describe("c", cells, "classes")
    assert isinstance(said, Column)
    assert said.classes == tuple(sorted(set(cells)))


def test_what_the_user_says_must_be_possible() -> None:
    with pytest.raises(UserError, match="holds no numbers: 'film'"):
        describe("c", ["3", "film"], "number")
    found = describe("c", ["3", "4", "5"], "number")
    assert isinstance(found, Column)
    assert found.kind == "number"


def test_a_column_of_one_value_is_of_no_use() -> None:
    assert describe("c", ["x", "x"], None) == "all its cells are the same"
    assert describe("c", [], None) == "all its cells are the same"
    assert describe("c", ["1", "1.0"], "number") == "all its numbers are the same"


def test_cells_become_numbers() -> None:
    found = describe("c", ["1.5", "2.5", "3.5", "4.5"], None)
    assert isinstance(found, Column)
    assert [found.value(cell) for cell in ("3", "4.5")] == pytest.approx([0, 1.5 / math.sqrt(1.25)])
    assert math.isnan(found.value(None))
    with pytest.raises(UserError, match="holds numbers, but also 'x'"):
        found.value("x")
    classes = describe("c", ["x", "y", "x", "y"], None)
    assert isinstance(classes, Column)
    assert [classes.value("x"), classes.value("y")] == [0, 1]
    assert math.isnan(classes.value("z"))
