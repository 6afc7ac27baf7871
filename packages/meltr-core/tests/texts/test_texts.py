"""Texts with a class each: tables, sample, splits, metrics and requests."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from command_line import assert_stopped, call
from meltr.context import PredictRequest
from meltr.errors import UserError
from meltr.metrics.classification import macro_f1
from meltr.specs import RunSpec
from meltr.texts import TextCorpus, TextItem, cut, evaluation, open_texts, predicted, texts_of

CSV = 'text,label,stars\n"good, but long",yes,3\nbad,no,1\n'


def spec(**settings) -> RunSpec:
    choice = {"backbone": "b", "task": "text-classification", "dataset": "text_table", "losses": ("one",)}
    return RunSpec(**choice, **settings)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.csv", CSV),
        ("train.csv", "\ufeff" + CSV.replace("\n", "\r\n")),
        ("train.tsv", "text\tlabel\tstars\ngood, but long\tyes\t3\nbad\tno\t1\n"),
        (
            "train.jsonl",
            '{"text": "good, but long", "label": "yes", "stars": 3}\n\n{"text": "bad", "label": "no", "stars": 1}',
        ),
    ],
)
def test_every_format_says_the_same(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    corpus = open_texts(spec(data_root=tmp_path))
    assert [(item.text, item.label, item.columns) for item in corpus.splits["train"]] == [
        ("good, but long", "yes", {"stars": "3"}),
        ("bad", "no", {"stars": "1"}),
    ]
    assert corpus.classes == ("no", "yes")
    assert list(corpus.splits) == ["train"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no table of training texts"),
        ({"train.csv": "words,label\na,b\n"}, "has no column 'text'; it has: words, label"),
        ({"train.csv": ""}, "it has: nothing"),
        ({"train.csv": "text,label\n"}, "has no text"),
        ({"train.csv": "text,label\na,x\n,y\n"}, "line 3: has an empty text"),
        ({"train.csv": "text,label\na\n"}, "line 2: has an empty label"),
        ({"train.csv": "text,label\na,b,c\n"}, "line 2 has more fields"),
        ({"train.csv": "text,label\na,x\nb,x\n"}, "have the label 'x'"),
        ({"train.csv": b"text,label\n\xff\xfe,x\n"}, "cannot be read"),
        ({"train.jsonl": '{"text": "a"'}, "line 1 is not JSON"),
        ({"train.jsonl": "[1]"}, "line 1 is a list"),
        ({"train.jsonl": '{"text": "a", "labl": "x"}'}, "line 1: has no label"),
        ({"train.csv": CSV, "train.tsv": CSV}, "which of them holds the split?"),
    ],
)
def test_tables_that_are_wrong(tmp_path: Path, files: dict[str, str | bytes], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as refused:
        open_texts(spec(data_root=tmp_path))
    assert refused.value.hint


def test_a_folder_is_needed_and_is_not_the_sample(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--data-root DIR") as refused:
        open_texts(spec())
    assert "train.csv" in str(refused.value.hint)
    with pytest.raises(UserError, match="there is no such folder"):
        open_texts(spec(data_root=tmp_path / "absent"))
    with pytest.raises(UserError, match="Remove one of them"):
        open_texts(spec(data_root=tmp_path, sample=True))


def test_the_sample_needs_two_words_for_a_class() -> None:
    """Balanced classes; no word alone belongs to one class, but for those of neutral texts."""
    corpus = open_texts(spec(sample=True))
    for items in corpus.splits.values():
        assert set(Counter(item.label for item in items).values()) == {len(items) // 3}
    classes: dict[str, set[str]] = {}
    for item in corpus.splits["train"]:
        for word in item.text.split():
            classes.setdefault(word, set()).add(item.label)
    assert classes["great"] == classes["dull"] == classes["not"] == {"good", "bad"}
    assert open_texts(spec(sample=True)) == corpus


def test_splits_are_disjoint_balanced_and_repeatable() -> None:
    items = tuple(TextItem(f"t{i}", "ab"[i % 2], str(i)) for i in range(100))
    corpus = TextCorpus({"train": items, "test": items[:10]}, ("a", "b"))
    run = spec(
        data={"validation": 0.2, "held_out": 10, "train_limit": 30, "eval_limit": 8},
        bilevel={"outer_batch": "held_out"},
    )
    found = cut(corpus, run).splits
    assert {name: len(each) for name, each in found.items()} == {
        "train": 30,
        "test": 8,
        "validation": 8,
        "held_out": 10,
    }
    own = [{item.id for item in found[name]} for name in ("train", "validation", "held_out")]
    assert len(set.union(*own)) == 48
    assert all(
        Counter(item.label for item in each) == Counter({"a": len(each) // 2, "b": len(each) // 2})
        for each in found.values()
    )
    assert cut(corpus, run).splits == found


def test_macro_f1_by_hand() -> None:
    """The four classes have 2 TP / (predicted + correct) = 2/4, 2/4, 2/3, 2/3."""
    found = macro_f1([0, 1, 1, 2, 0, 3, 3], [0, 1, 2, 2, 1, 0, 3])
    assert found == pytest.approx(100 * (2 / 4 + 2 / 4 + 2 / 3 + 2 / 3) / 4)
    assert macro_f1([0, 0], [0, -100]) == pytest.approx(100 * 2 / 3)
    with pytest.raises(ValueError, match="two vectors"):
        macro_f1([], [])


def test_an_evaluation_counts_by_hand() -> None:
    train = tuple(TextItem("x", label, label) for label in "aab")
    items = tuple(TextItem(text, label, text) for text, label in (("p", "a"), ("q", "b"), ("r", "new"), ("s", "b")))
    found = evaluation(TextCorpus({"train": train}, ("a", "b")), items, [0, 1, 1, 0])
    assert found.metrics["accuracy"] == 50
    assert found.metrics["macro_f1"] == pytest.approx(100 * (2 / 3 + 2 / 4) / 2)
    assert found.baselines["always 'a'"]["accuracy"] == 25
    assert found.predictions[2] == {"id": "r", "text": "r", "label": "new", "predicted": "b"}


def test_requests_and_rows() -> None:
    assert texts_of(PredictRequest(text=("a",))) == ("a",)
    for request, option in (
        (PredictRequest(), "--text"),
        (PredictRequest(text=("a",), question="b"), "--question"),
        (PredictRequest(media=(Path("x.mp4"),)), "--video or --image"),
    ):
        with pytest.raises(UserError, match=option):
            texts_of(request)
    rows = predicted(["x", "y"], [[0.2, 0.5, 0.3], [0.9, 0.1, 0.0]], ("a", "b", "c"), top=2).rows
    assert [(row["text"], row["label"]) for row in rows] == [("x", "b"), ("x", "c"), ("y", "a"), ("y", "b")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--text", " "], "--text is empty"),
        (["--text", "a", "--videos", "."], "--text cannot be combined with videos and images"),
        (["--text", "a", "--sheet", "x.png"], "--text cannot be combined with --sheet"),
        ([], "or --text TEXT"),
    ],
)
def test_predict_refuses_what_cannot_be_meant(tmp_path: Path, words: list[str], message: str) -> None:
    assert_stopped(call("predict", tmp_path, *words), message)
