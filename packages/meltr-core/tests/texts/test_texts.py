"""Texts with a class each: tables, sample, splits, metrics and requests."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

from command_line import assert_stopped, call
from meltr.context import PredictRequest
from meltr.errors import UserError
from meltr.metrics.classification import macro_f1
from meltr.specs import RunSpec
from meltr.texts import TextCorpus, TextItem, cut, evaluation, open_texts, predicted, texts_of, writings, written

CSV = 'text,label,stars\n"good, but long",yes,3\nbad,no,1\n'


def spec(task: str = "text-classification", **settings) -> RunSpec:
    return RunSpec(backbone="b", task=task, dataset="text_table", losses=("one",), **settings)


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
        ({"train.csv": CSV, "manifest.csv": CSV}, "manifest.csv and train.csv; which of them counts?"),
        ({"manifest.csv": "text,label,split\na,x,trian\n"}, "line 2: split = 'trian'"),
        (
            {"manifest.jsonl": '{"text": "a", "label": "x", "split": "train"}\n{"text": "b", "label": "y"}'},
            "line 2: has",
        ),
        ({"manifest.jsonl": '{"text": "a", "label": "x", "split": "test"}'}, "no table of training texts"),
        ({"train.jsonl": '{"text": "a", "label": "x", "n": NaN}'}, "is not JSON: the number NaN"),
    ],
)
def test_tables_that_are_wrong(tmp_path: Path, files: dict[str, str | bytes], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as refused:
        open_texts(spec(data_root=tmp_path))
    assert refused.value.hint


MANIFEST = """\
{"split": "train", "id": 7, "text": "good", "label": "yes", "stars": 3}
{"split": "dev", "text": "fair", "label": "no", "stars": null}
{"split": "train", "text": "bad", "label": "no", "topic": " "}
"""


def test_one_table_with_all_splits(tmp_path: Path) -> None:
    """In its folder or by its own name; without a column that names the split, everything is for training."""
    file = tmp_path / "manifest.jsonl"
    file.write_text(MANIFEST, encoding="utf-8")
    corpus = open_texts(spec(data_root=tmp_path))
    assert {split: [item.text for item in items] for split, items in corpus.splits.items()} == {
        "train": ["good", "bad"],
        "validation": ["fair"],
    }
    assert [item.columns for item in corpus.splits["train"]] == [{"stars": "3"}, {}]
    assert corpus.splits["train"][1].id == "manifest.jsonl:3"
    assert corpus.columns == ("stars",)
    assert open_texts(spec(data_root=file)) == corpus
    other = tmp_path / "reviews.csv"
    other.write_text(CSV, encoding="utf-8")
    assert list(open_texts(spec(data_root=other)).splits) == ["train"]
    with pytest.raises(UserError, match="is not a table"):
        open_texts(spec(data_root=other.rename(tmp_path / "reviews.txt")))


def test_texts_with_targets(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,target,label\nuno,one,x\ndos, two ,x\n", encoding="utf-8")
    run = spec("text-to-text", data_root=tmp_path, data={"validation": 1})
    corpus = open_texts(run)
    assert [(item.text, item.target, item.label, item.columns) for item in corpus.splits["train"]] == [
        ("uno", "one", "", {"label": "x"}),
        ("dos", "two", "", {"label": "x"}),
    ]
    assert {split: len(items) for split, items in cut(corpus, run).splits.items()} == {"train": 1, "validation": 1}
    (tmp_path / "train.csv").write_text("text,label\nuno,x\n", encoding="utf-8")
    with pytest.raises(UserError, match="no column 'target'"):
        open_texts(run)
    made = open_texts(spec("text-to-text", sample=True))
    assert all(item.target.startswith("a ") and not item.label for item in made.splits["train"])


@pytest.mark.slow
def test_a_folder_of_the_library_datasets(tmp_path: Path) -> None:
    """Classes by their names; the same corpus as from a table."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        text=datasets.Value("string"), label=datasets.ClassLabel(names=["no", "yes"]), stars=datasets.Value("int64")
    )
    rows = {"text": ["good, but long", "bad"], "label": [1, 0], "stars": [3, 1]}
    table = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict(train=table, dev=table).save_to_disk(str(tmp_path / "both"))
    table.save_to_disk(str(tmp_path / "one"))
    (tmp_path / "train.csv").write_text(CSV, encoding="utf-8")
    expected = [(item.text, item.label, item.columns) for item in open_texts(spec(data_root=tmp_path)).splits["train"]]
    for name, splits in (("both", ["train", "validation"]), ("one", ["train"])):
        corpus = open_texts(spec(data_root=tmp_path / name))
        assert list(corpus.splits) == splits
        assert [(item.text, item.label, item.columns) for item in corpus.splits["train"]] == expected
    datasets.DatasetDict(train=table, unsupervised=table).save_to_disk(str(tmp_path / "odd"))
    with pytest.raises(UserError, match="unknown split 'unsupervised'"):
        open_texts(spec(data_root=tmp_path / "odd"))


def test_a_saved_folder_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "dataset_dict.json").write_text("{}")
    with pytest.raises(UserError, match="not installed") as refused:
        open_texts(spec(data_root=tmp_path))
    assert "meltr-core[datasets]" in str(refused.value.hint)


def test_what_is_written_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    """BLEU-4 with one of four words wrong at the end: precisions 3/4, 2/3, 1/2 and, smoothed, 1/2 of 1."""
    pytest.importorskip("sacrebleu")
    items = tuple(TextItem("t", "", str(n), target=target) for n, target in enumerate(["the cat was here", "a dog"]))
    found = written(TextCorpus({"train": items[1:]}, ()), items[:1], ["the cat was there"])
    assert found.metrics["bleu"] == pytest.approx(100 * (3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** 0.25)
    assert found.predictions == (
        {"id": "0", "text": "t", "target": "the cat was here", "predicted": "the cat was there"},
    )
    found = written(TextCorpus({"train": items[1:]}, ()), items, ["the cat sat", "a dog "])
    assert found.metrics["exact_match"] == found.baselines["always 'a dog'"]["exact_match"] == 50
    perfect = written(TextCorpus({"train": items}, ()), items, [item.target for item in items])
    assert perfect.metrics == {"chrf": 100, "bleu": pytest.approx(100), "exact_match": 100}
    assert [row["output"] for row in writings(["x", "y"], [["1"], ["2", "3"]]).rows] == ["1", "2", "3"]
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(UserError, match="sacrebleu") as refused:
        written(TextCorpus({"train": items}, ()), items, ["a", "b"])
    assert "meltr-core[generation]" in str(refused.value.hint)


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
