"""The base class of backbones of texts, with a model that says what is expected by hand."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from meltr.context import PredictRequest
from meltr.errors import PluginError, UserError
from meltr.specs import RunSpec
from meltr.texts import Column, TextAdapter, TextCorpus, TextEncoder, TextItem
from meltr.texts.adapter import about_column, notes_on_classes
from meltr.texts.batches import Collate, padded
from meltr.texts.columns import with_columns
from meltr.texts.losses import column_loss
from meltr.texts.options import TextOptions
from ranks_helper import run_ranks

TABLE = "text,label,topic,stars\none two,a,x,1.5\none,b,y,2.5\ntwo two two,a,x,\nthree,b,y,4.5\n"


class Lengths(TextEncoder):
    """A text is the number of its words."""

    text_length = 2

    def texts(self, texts):
        return {"count": torch.tensor([float(len(text.split())) for text in texts])}

    def truncated(self, texts):
        return sum(len(text.split()) > self.text_length for text in texts)

    def facts(self):
        return {"longest": 3}


class Counting(TextAdapter[nn.Module]):
    """One word: the class b and the topic y; more: a and x. The stars are a deviation above the mean."""

    def make_encoder(self, texts, meta, context):
        self.seen = texts, meta
        return Lengths()

    def make_model(self, meta, context):
        return nn.Linear(1, 1)

    def losses(self, model, batch, context):
        return {name: model.weight.sum() for name in context.losses}

    def outputs(self, model, batch, context):
        short = batch["count"] == 1
        by_length = torch.stack([~short, short], 1).float()
        return {"label": by_length, "topic": by_length, "stars": torch.ones(len(short), 1)}


def run(tmp_path: Path, task: str = "text-classification", **options: Any) -> Any:
    for split in ("train", "test"):
        if not (tmp_path / f"{split}.csv").exists():  # other processes may be reading it
            (tmp_path / f"{split}.csv").write_text(TABLE, encoding="utf-8")
    declared = RunSpec(
        backbone="b",
        task=task,
        dataset="manifest",
        losses=("classification",),
        data_root=tmp_path,
        data={"validation": 0},
        train={"batch_size": 4},
    )
    chosen = TextOptions(eval_batch_size=3, **options)
    spec = declared.model_copy(update={"losses": with_columns(declared, chosen)})
    shared = {"rank": 0, "world_size": 1, "device": torch.device("cpu"), "notes": []}
    return SimpleNamespace(spec=spec, options=chosen, losses=spec.losses, **shared)


def test_a_run_from_the_table_to_the_answers(tmp_path: Path) -> None:
    context, adapter = run(tmp_path), Counting()
    assert context.losses == ("classification", "topic", "stars")
    data = adapter.build_data(context)
    assert adapter.seen == (["one two", "one", "two two two", "three"], {})
    assert context.notes == ["1 of 4 training texts are longer than 2 tokens"]
    assert data.meta["longest"] == 3
    (batch,) = data.train.batches(0)
    order = batch["count"].tolist()
    assert sorted(order) == [1, 1, 2, 3]
    assert [index == 1 for index in batch["label"].tolist()] == [count == 1 for count in order]
    assert batch["columns"][:, 0].tolist() == batch["label"].tolist()
    model = adapter.build_model(context, data)
    found = adapter.evaluate(model, data.test, context)
    assert (found.metrics, found.count) == ({"accuracy": 100, "macro_f1": 100}, 4)
    deviation = math.sqrt(((1.5 - 17 / 6) ** 2 + (2.5 - 17 / 6) ** 2 + (4.5 - 17 / 6) ** 2) / 3)
    errors = [abs(17 / 6 + deviation - stars) for stars in (1.5, 2.5, 4.5)]
    assert found.details["columns"]["topic"] == {"accuracy": 100, "count": 4}
    assert found.details["columns"]["stars"]["mae"] == pytest.approx(sum(errors) / 3)
    later = Counting()  # A trained run, without its data set.
    later.build_model(context, data)
    assert later.seen == (None, data.meta)
    answer = later.predict(model, PredictRequest(text=("one", "one two"), top=1), data, context)
    assert [row["label"] for row in answer.rows] == ["b", "a"]


class Told(Counting):
    """Also writes, and counts the texts that it was shown."""

    shown = 0

    def outputs(self, model, batch, context):
        self.shown += len(batch["count"])
        return super().outputs(model, batch, context)

    def write(self, model, texts, context, *, count):
        self.shown += len(texts)
        return [[f"{text} {number}" for number in range(count)] for text in texts]


def evaluated(ranks, folder):
    """Return an evaluation by `ranks`, what is written, and the texts that this process was shown for each."""
    context, adapter = run(Path(folder)), Told()
    data = adapter.build_data(context)
    model = adapter.build_model(context, data)
    context.rank, context.world_size = (ranks.rank, ranks.size) if ranks else (0, 1)
    found, once = adapter.evaluate(model, data.test, context), adapter.shown
    texts = [item.text for item in data.test]
    return (
        found.predictions,
        found.metrics,
        found.details,
        adapter._written(model, texts, context, 2),
        once,
        adapter.shown,
    )


def test_processes_share_an_evaluation(tmp_path: Path) -> None:
    """Four texts in batches of three: the second process has the last text alone."""
    folders = [tmp_path / name for name in ("alone", "shared")]
    for folder in folders:
        folder.mkdir()
        run(folder)
    *alone, once, twice = evaluated(None, folders[0])
    assert (once, twice) == (4, 8)
    for texts, ended in zip((3, 1), run_ranks(evaluated, words=folders[1:]), strict=True):
        *found, once, twice = ended.result
        assert found == alone
        assert (once, twice) == (texts, 2 * texts)


def test_classes_that_training_does_not_have_are_said() -> None:
    items = [TextItem("t", label, str(number)) for number, label in enumerate("aabzy")]
    corpus = TextCorpus({"train": tuple(items[:3]), "test": tuple(items[2:])}, ("a", "b"))
    note = "2 of 3 test texts have a class that no training text has: 'y', 'z'"
    assert notes_on_classes(corpus) == [note]


def test_columns_are_chosen_and_skipped(tmp_path: Path) -> None:
    assert run(tmp_path, columns={"topic": "skip"}).losses == ("classification", "stars")
    with pytest.raises(UserError, match="names 'star', which the table does not have") as refused:
        run(tmp_path, columns={"star": "number"})
    assert "topic, stars" in str(refused.value.hint)


def test_what_a_backbone_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="Lengths has no method targets"):
        Collate(Lengths(), (), ())([TextItem("one", "", "1", target="two")])
    with pytest.raises(PluginError, match="Counting has no method write"):
        Counting().write(nn.Linear(1, 1), ["one"], run(tmp_path), count=1)


def test_the_loss_of_a_column_counts_known_cells() -> None:
    number, classes = Column("n", "number", mean=3.0, deviation=2.0), Column("c", "classes", ("x", "y"))
    outputs, values = torch.tensor([[1.0], [5.0], [0.5]]), torch.tensor([0.0, math.nan, 1.5])
    assert float(column_loss(number, outputs, values)) == pytest.approx((1.0 + 1.0) / 2)
    found = column_loss(classes, torch.tensor([[0.0, 0.0], [9.0, 0.0]]), torch.tensor([1.0, math.nan]))
    assert float(found) == pytest.approx(math.log(2))
    items = [TextItem("t", "a", "1", {"c": "z"})]
    assert about_column(classes, torch.zeros(1, 2), items) == {}


def test_rows_are_padded_at_either_end() -> None:
    ids, mask = padded([[5, 6], [7]], 0)
    assert (ids.tolist(), mask.tolist()) == ([[5, 6], [7, 0]], [[1, 1], [1, 0]])
    ids, mask = padded([[5, 6], [7]], 9, left=True)
    assert (ids.tolist(), mask.tolist()) == ([[5, 6], [9, 7]], [[1, 1], [0, 1]])
