"""Parts of prediction that all backbones share: what a run can be asked, which answers, in which order."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from meltr.context import PredictRequest
from meltr.errors import UserError
from meltr.video.prediction import USES, answer_rows, check_request, chosen_answers, ranked_files

FILES = (Path("a.mp4"), Path("b.png"))
ASKED: dict[str, dict[str, Any]] = {
    "qa": {"question": "what?"},
    "retrieval": {"search": "a dog"},
    "action": {},
    "captioning": {},
    "sentiment": {},
}


def context(task: str) -> Any:
    return SimpleNamespace(spec=SimpleNamespace(task=task), run_dir=Path("runs/x"))


@pytest.mark.parametrize("task", USES)
def test_each_task_takes_what_it_needs_and_refuses_the_rest(task: str) -> None:
    check_request(PredictRequest(media=FILES, **ASKED[task]), context(task))
    for name, value in {"question": "what?", "search": "a dog"}.items():
        if name in ASKED[task]:
            without = PredictRequest(media=FILES)
            with pytest.raises(UserError, match=f"it needs --{name}") as found:
                check_request(without, context(task))
        else:
            wrong = PredictRequest(media=FILES, **{**ASKED[task], name: value})
            with pytest.raises(UserError, match=f"it cannot use --{name}") as found:
                check_request(wrong, context(task))
        assert f"meltr predict runs/x {USES[task].ask}" in str(found.value.hint)


def test_choices_are_for_runs_that_choose() -> None:
    with pytest.raises(UserError, match="it cannot use --choices"):
        check_request(PredictRequest(search="x", choices=("a",)), context("retrieval"))
    check_request(PredictRequest(media=tuple(FILES), choices=("a",)), context("action"))
    with pytest.raises(UserError, match="needs at least one video or image"):
        check_request(PredictRequest(choices=("a",)), context("action"))
    with pytest.raises(UserError, match="it needs --choices") as found:
        check_request(PredictRequest(question="x"), context("qa"), must_choose=True)
    assert found.value.hint is not None
    assert "--choices a,b,c" in found.value.hint


def test_answers_are_those_named_in_their_order() -> None:
    names = ("cat", "dog", "horse")
    assert chosen_answers(PredictRequest(choices=("horse", "cat")), names) == [2, 0]
    assert chosen_answers(PredictRequest(), names) == [0, 1, 2]
    with pytest.raises(UserError, match="'hors' is not among the 3 answers") as found:
        chosen_answers(PredictRequest(choices=("dog", "hors")), names)
    assert str(found.value.hint).startswith("Closest answers: horse")


def test_rows_of_a_file_stand_together_best_first() -> None:
    rows = answer_rows(FILES, [[0.2, 0.5, 0.3], [0.4, 0.2, 0.4]], ("x", "y", "z"), column="answer", top=2)
    assert rows == [
        {"video": FILES[0], "answer": "y", "probability": 0.5},
        {"video": FILES[0], "answer": "z", "probability": 0.3},
        {"image": FILES[1], "answer": "x", "probability": 0.4},
        {"image": FILES[1], "answer": "z", "probability": 0.4},
    ]


def test_files_are_ranked_and_equals_keep_their_order() -> None:
    found = ranked_files([(0.1, FILES[0]), (0.9, FILES[1]), (0.1, Path("c.mp4"))], 2, remark=" (cut)")
    assert [(next(iter(row.values())), row["score"]) for row in found.rows] == [(FILES[1], 0.9), (FILES[0], 0.1)]
    assert found.what == "best of 3 files (cut)"
