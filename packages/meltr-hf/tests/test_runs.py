"""Whole runs on small models of every kind, loaded by path, and what is refused before a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meltr.context import PredictRequest
from meltr.engine.predicting import load_run
from meltr.engine.run import execute
from meltr.errors import UserError
from meltr.plugins import discover
from meltr.settings import resolve
from meltr.specs import RunSpec

Folder = Callable[[str], Path]

LINES = [
    ("the film was great", "good", "a good film", "film", "4.5"),
    ("the book was dull", "bad", "a bad book", "book", "1.5"),
    ("the song was not dull", "good", "a good song", "song", "4"),
    ("the film was not great", "bad", "a bad film", "film", "2"),
    ("the book was great today", "good", "a good book", "book", ""),
    ("the song was weak", "bad", "a bad song", "song", "1"),
]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a table for both tasks; for each, the answer of the other is not among its further columns."""
    folder = tmp_path_factory.mktemp("table")
    for answer, place in (("label", 1), ("target", 2)):
        rows = [f"{line[0]},{line[place]},{line[3]},{line[4]}" for line in LINES * 4]
        (folder / answer).mkdir()
        (folder / answer / "train.csv").write_text("\n".join([f"text,{answer},topic,stars", *rows]))
        (folder / answer / "test.csv").write_text("\n".join([f"text,{answer},topic,stars", *rows[:6]]))
    return folder


def make_spec(table: Path, model: Path | str, task: str = "text-classification", **flags: Any) -> RunSpec:
    answer = "target" if task == "text-to-text" else "label"
    settings = {"options.model": str(model), "train.batch_size": 6, "train.max_steps": 2, "options.text_length": 10}
    settings |= {"options.target_length": 5, "device": "cpu", "combiner_options.width": 16, "combiner_options.heads": 2}
    settings |= {"data_root": table / answer, "bilevel.every": 1, **flags}
    return resolve(discover(), backbone="hf", task=task, dataset="manifest", preset="none", flags=settings)


@pytest.mark.parametrize(
    ("model", "task", "losses"),
    [
        ("distilbert", "text-classification", "classification mlm contrastive replaced reordered topic stars"),
        ("gpt2", "text-classification", "classification lm contrastive replaced reordered topic stars"),
        ("t5", "text-classification", "classification denoising contrastive replaced reordered topic stars"),
        ("gpt2", "text-to-text", "generation lm contrastive replaced reordered topic stars"),
        ("t5", "text-to-text", "generation denoising contrastive replaced reordered topic stars"),
    ],
)
def test_a_saved_model_is_trained_with_all_that_it_serves(
    model: str, task: str, losses: str, table: Path, folder_of: Folder, tmp_path: Path
) -> None:
    spec = make_spec(table, folder_of(model), task)
    assert spec.losses == tuple(losses.split())
    results = execute(spec, run_dir=tmp_path / "run", registry=discover())
    assert (results["steps"], results["test"]["count"]) == (2, 6)
    columns = results["test"]["details"]["columns"]
    assert columns["topic"]["count"] == 6
    assert columns["stars"]["count"] == 5
    assert 0 < columns["stars"]["mae"] < 5
    folder_of(model).rename(tmp_path / "moved")  # The folder of the run is enough.
    try:
        answer = load_run(tmp_path / "run", registry=discover()).predict(PredictRequest(text=("the film",), top=2))
    finally:
        (tmp_path / "moved").rename(folder_of(model))
    assert len(answer.rows) == (2 if task == "text-classification" else 1)


def test_adapters_are_trained_saved_and_loaded(table: Path, folder_of: Folder, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from safetensors.torch import load_file

    spec = make_spec(table, folder_of("bert"), **{"options.peft": "lora", "losses": ["classification", "mlm"]})
    execute(spec, run_dir=tmp_path / "run", registry=discover())
    state = load_file(tmp_path / "run" / "checkpoints" / "step-000002" / "backbone.safetensors")
    start = load_file(folder_of("bert") / "model.safetensors")
    kept = [name for name in state if name.removeprefix("pretrained.") in start]
    assert len(kept) > 20
    assert all((state[name] == start[name.removeprefix("pretrained.")]).all() for name in kept)
    assert any("lora_B" in name and bool(value.any()) for name, value in state.items())
    answers = [load_run(tmp_path / "run", registry=discover()).predict(PredictRequest(text=("a",))) for _ in range(2)]
    assert answers[0].rows == answers[1].rows


@pytest.mark.parametrize(
    ("model", "task", "flags", "message", "hint"),
    [
        ("gpt2", "text-classification", {"losses": ["classification", "mlm"]}, "no loss 'mlm'", "contrastive, lm"),
        ("bert", "text-classification", {"losses": ["classification", "lm"]}, "no loss 'lm'", "mlm"),
        ("bert", "text-to-text", {}, "is an encoder, which cannot write", "T5"),
        ("bert", "text-classification", {"options.columns": {"colour": "skip"}}, "names 'colour'", "topic, stars"),
        ("/no/such/model", "text-classification", {}, "/no/such/model", "save_pretrained"),
    ],
)
def test_what_cannot_be_is_refused_before_a_run(
    model: str, task: str, flags: dict[str, Any], message: str, hint: str, table: Path, folder_of: Folder
) -> None:
    name = model if model.startswith("/") else folder_of(model)
    with pytest.raises(UserError, match=message) as refused:
        make_spec(table, name, task, **flags)
    assert hint in str(refused.value.hint)


def test_columns_can_be_skipped_and_must_not_have_the_name_of_a_loss(table: Path, tmp_path: Path) -> None:
    spec = make_spec(table, "tiny", **{"options.columns": {"topic": "skip", "stars": "number"}})
    assert spec.losses == ("classification", "mlm", "contrastive", "replaced", "reordered", "stars")
    (tmp_path / "label").mkdir()
    (tmp_path / "label" / "train.csv").write_text("text,label,mlm\na,x,1\nb,y,2\n")
    with pytest.raises(UserError, match="the column 'mlm' has the name of another loss") as refused:
        make_spec(tmp_path, "tiny")
    assert "skip" in str(refused.value.hint)
    assert "mlm" in make_spec(tmp_path, "tiny", **{"options.columns": {"mlm": "skip"}}).losses


def test_a_column_of_one_value_is_dropped_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "label").mkdir()
    rows = "".join(f"{text},{label},same\n" for text, label, *_ in LINES)
    (tmp_path / "label" / "train.csv").write_text(f"text,label,origin\n{rows}")
    execute(make_spec(tmp_path, "tiny"), run_dir=tmp_path / "run", registry=discover())
    assert "all its cells are the same" in (tmp_path / "run" / "data.json").read_text()
