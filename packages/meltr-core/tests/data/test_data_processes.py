"""Work in other processes: in order, and no death takes more than its own item."""

from __future__ import annotations

import itertools

import pytest

from dying import square_or_die
from meltr.data.processes import map_in_order


def no_answer(number: int) -> int:
    return -number


def test_results_come_in_order_though_a_process_dies():
    found = list(map_in_order(square_or_die, range(1, 12), workers=2, died=no_answer))
    assert found == [(number, -number if number == 3 else number**2) for number in range(1, 12)]


@pytest.mark.parametrize("workers", [0, 1])
def test_items_are_taken_only_as_they_are_needed(workers):
    taken = []

    def items():
        for number in itertools.count():
            taken.append(number)
            yield number % 3

    results = map_in_order(square_or_die, items(), workers=workers, died=no_answer)
    assert list(itertools.islice(results, 5)) == [(0, 0), (1, 1), (2, 4), (0, 0), (1, 1)]
    results.close()
    assert len(taken) < 15


def test_an_error_of_the_function_is_not_swallowed():
    with pytest.raises(TypeError, match="not all arguments"):
        list(map_in_order(square_or_die, ["word"], workers=1, died=no_answer))  # type: ignore[list-item]
