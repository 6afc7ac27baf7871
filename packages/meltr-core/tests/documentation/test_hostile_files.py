"""The table of hostile files on the security page: every file gets the answer that the page prints."""

from __future__ import annotations

import re

import pytest

from hostile_files import BEGIN, END, HOSTILE, PAGE, answer, row

pytest.importorskip("av")


@pytest.fixture(scope="module")
def printed() -> list[str]:
    if not PAGE.is_file():
        pytest.skip("no docs here: the tests run outside the repository")
    return PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].splitlines()[2:]


def own_words(line: str) -> str:
    """Return a row as far as its words are ours: up to a number, or to what another library says."""
    what, _, said = line.removeprefix("| ").partition(" | ")
    return f"{what} | {re.split(r'[0-9(]|Error|:.*:', said)[0]}"


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda hostile: hostile.what)
def test_a_hostile_file_gets_the_answer_that_the_page_prints(tmp_path, monkeypatch, printed, hostile):
    monkeypatch.chdir(tmp_path)
    assert own_words(row(hostile, answer(hostile, tmp_path))) in [own_words(line) for line in printed]
    assert not (tmp_path / "ran").exists()


def test_the_page_prints_no_other_files(printed):
    assert len(printed) == len(HOSTILE)
