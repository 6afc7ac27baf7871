"""The adapter in whole runs: losses of every task, heads, scoring, weights, prediction, the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from allinone_clips import SMALL
from command_line import call
from drawing import assert_draws_come_from_the_context
from meltr.context import Data, PredictRequest, RunContext
from meltr.engine.run import execute
from meltr.errors import UserError
from meltr.plugins import discover
from meltr.settings import resolve
from meltr.specs import RunSpec
from meltr_allinone.adapter import AllInOneAdapter
from meltr_allinone.model.all_in_one import AllInOne
from meltr_allinone.model.building import heads_of, model_config, scoring_of
from meltr_allinone.options import AllInOneOptions
from meltr_allinone.weights.official import official_state
from meltr_fixtures import Sample
from places import reference_table, shared
from small_runs import MakeSpec, spec_maker

Make = Callable[..., RunContext]
TINY = {"options.size": "tiny", "options.eval_batch_size": 3, "train.log_every": 1, "train.batch_size": 4}


@pytest.fixture
def make_spec(sample: Sample) -> MakeSpec:
    """Return a maker of small runs on miniatures."""
    sizes = {f"options.{name}": value for name, value in SMALL.items()} | TINY
    return spec_maker(sample, "allinone", sizes, task="retrieval", dataset="msrvtt-7k")


@pytest.mark.parametrize(
    ("task", "dataset", "losses"),
    [
        ("retrieval", "msrvtt-7k", ("vtm", "mlm")),
        ("retrieval", "msrvtt-9k", ("vtm", "mlm", "wpa", "contrastive", "rank")),
        ("qa", "msvd", ("answer", "vtm", "mlm", "wpa", "contrastive")),
        ("qa", "msrvtt", ("answer",)),
    ],
)
def test_every_task_has_its_losses_and_no_head_in_vain(
    make_context: Make, task: str, dataset: str, losses: tuple[str, ...]
) -> None:
    context = make_context(task, dataset, losses=losses, size="tiny")
    adapter = AllInOneAdapter()
    data = adapter.build_data(context)
    model = adapter.build_model(context, data).train()
    batch = next(iter(data.train.batches(0)))
    found = adapter.compute_task_losses(model, batch, context)
    assert tuple(found) == losses
    sum(found.values()).backward()  # type: ignore[union-attr]
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_all_draws_come_from_the_generator_of_the_context(make_context: Make) -> None:
    context = make_context("qa", "msvd", losses=("answer", "vtm", "mlm"), size="tiny")
    assert_draws_come_from_the_context(AllInOneAdapter(), context, "mlm")


def test_scoring_follows_the_losses() -> None:
    options = AllInOneOptions(size="tiny")
    assert scoring_of(options, ("vtm", "mlm")) == "joint"
    assert scoring_of(options, ("vtm", "contrastive")) == "dual"
    assert scoring_of(AllInOneOptions(scoring="rerank"), ("vtm",)) == "rerank"
    assert heads_of(options, "retrieval", ("vtm", "mlm")) == ("mlm", "itm")
    assert heads_of(options, "retrieval", ("mlm", "contrastive")) == ("mlm", "contrastive")
    assert heads_of(options, "retrieval", ("mlm", "rank")) == ("mlm", "rank")
    assert heads_of(options, "retrieval", ("mlm",)) == ("mlm", "itm")
    assert heads_of(options, "qa", ("answer", "vtm")) == ("itm", "answer")


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Return key -> shape of the published checkpoint, from the table of the reference."""
    table = shared("reference", "allinone.md").read_text(encoding="utf-8").split("### 9.2 Keys and shapes", 1)[1]
    shapes = {}
    for keys, cells in re.findall(r"^\| `([^`]*)`[^|]* \| (\(.*\)) \|$", table, re.M):
        names = [re.sub(r"\{[^{]*\}$", name, keys) for name in ("weight", "bias")] if keys[-1] == "}" else [keys]
        sizes = [tuple(map(int, re.findall(r"\d+", shape))) for shape in re.findall(r"\(.*?\)", cells)]
        for name, size in zip(names, sizes * len(names), strict=False):
            blocks = range(12) if ".blocks." in name else range(1)
            shapes |= {re.sub(r"\{.*?\}", str(number), name): size for number in blocks}
    return shapes


def test_the_published_model_has_the_keys_and_shapes_of_its_checkpoint() -> None:
    with torch.device("meta"):
        model = AllInOne(model_config(AllInOneOptions(), {"vocabulary": 30522}), heads=("mlm", "itm"))
    expected = published_shapes()
    assert len(expected) == 167 + 1, "as many as the reference says, and a buffer"
    assert {key: tuple(value.shape) for key, value in official_state(model.state_dict()).items()} == expected


def test_sizes_of_a_small_model() -> None:
    tiny = model_config(AllInOneOptions(size="tiny", image_size=64, frames=5), {"vocabulary": 77})
    assert (tiny.vocabulary, tiny.frames, tiny.image_size) == (77, 5, 64)
    with pytest.raises(UserError, match="40,000 tokens, the published model 30,522"):
        model_config(AllInOneOptions(), {"vocabulary": 40_000})


def test_hard_negatives_need_the_contrastive_loss(make_context: Make) -> None:
    context = make_context(hard_negatives=True, size="tiny")
    adapter = AllInOneAdapter()
    data = adapter.build_data(context)
    with pytest.raises(UserError, match="hard_negatives=true") as found:
        adapter.build_model(context, data)
    assert "losses=vtm,mlm,contrastive" in str(found.value.hint)
    fine = make_context(hard_negatives=True, size="tiny", losses=("vtm", "contrastive"))
    assert adapter.build_model(fine, data).txt_proj is not None


def test_no_decay_for_norms_and_biases_and_a_faster_answer_head(make_context: Make) -> None:
    context = make_context("qa", "msvd", losses=("answer",), answer_lr_scale=10.0, size="tiny")
    adapter = AllInOneAdapter()
    model = adapter.build_model(context, adapter.build_data(context))
    names = {parameter: name for name, parameter in model.named_parameters()}
    seen: dict[str, tuple[float, bool]] = {}
    for group in adapter.parameter_groups(model, context):
        for parameter in group["params"]:
            seen[names[parameter]] = (group["lr_scale"], "weight_decay" in group)
    assert len(seen) == len(names)
    assert seen["transformer.blocks.0.norm1.weight"] == (1.0, True)
    assert seen["text_embeddings.LayerNorm.weight"] == (1.0, True)
    assert seen["transformer.pos_embed"] == seen["transformer.blocks.0.attn.qkv.weight"] == (1.0, False)
    assert seen["vqa_classifier.4.weight"] == (10.0, False)
    assert seen["vqa_classifier.4.bias"] == (10.0, True)


@pytest.mark.parametrize(
    ("losses", "scoring"), [("vtm,mlm", "auto"), ("vtm,contrastive", "auto"), ("vtm,contrastive", "rerank")]
)
def test_retrieval_runs_with_every_scoring(
    make_spec: Callable[..., RunSpec], tmp_path: Path, losses: str, scoring: str
) -> None:
    spec = make_spec(losses=losses, options__scoring=scoring, options__rerank=2, train__max_steps=1)
    results = execute(spec, run_dir=tmp_path / "run", registry=discover())
    assert {"r@1", "medr", "v2t/r@10"} <= set(results["test"]["metrics"])
    assert results["test"]["baselines"]["chance"]["r@1"] > 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "predictions" / "test.jsonl").read_text().splitlines()]
    videos = {row["video"] for row in rows}
    assert len(rows) == results["test"]["count"]
    assert {row["first"] for row in rows} <= videos
    hits = sum(row["first"] == row["video"] for row in rows)
    assert results["test"]["metrics"]["r@1"] == pytest.approx(100 * hits / len(rows))


def test_answers_are_scored_and_written(make_spec: Callable[..., RunSpec], tmp_path: Path) -> None:
    results = execute(make_spec("qa", "msvd", train__max_steps=1), run_dir=tmp_path / "run", registry=discover())
    rows = [json.loads(line) for line in (tmp_path / "run" / "predictions" / "test.jsonl").read_text().splitlines()]
    right = sum(row["predicted"] == row["right"] for row in rows)
    assert results["test"]["metrics"]["accuracy"] == pytest.approx(100 * right / len(rows))
    assert "question without the video" in results["test"]["baselines"]


def test_released_fidelity_trains_on_what_the_release_does() -> None:
    told = reference_table("allinone.md", "### 5.1 Named configuration `msrvtt_retrieval_MELTR`, resolved [run]")
    choice = {"backbone": "allinone", "task": "retrieval", "dataset": "msrvtt-7k"}
    spec = resolve(discover(), **choice, flags={"fidelity": "released", "data_root": "."})
    names = {"ind_itc": "contrastive"}
    order = re.search(r"\[(.*)\]", told["order of active tasks"][0])[1]  # type: ignore[index]
    assert spec.losses == tuple(names.get(name, name) for name in order.split(", "))
    rates = told["learning rate / weight decay / optimiser"][0].split(" / ")
    assert [spec.train.lr, spec.train.weight_decay] == [float(number) for number in rates[:2]]
    assert str(spec.train.epochs) == told["max_epoch / max_steps"][0].split(" / ")[0]
    assert f"`retrieval_views` {spec.options['retrieval_views']}" in told["evaluation"][0]
    outer = spec.bilevel
    found = {"`auxgrad_every` (K)": outer.every, "`gamma`": outer.gamma}
    found["`max_grad_norm` (hypergradient only)"] = outer.outer_clip_norm
    assert found == {name: float(told[name][0]) for name in found}
    rates = re.findall(r"[\de-]+", told["`meltr_lr`, `meltr_decay`"][0])[:2]
    assert [outer.outer_lr, outer.outer_weight_decay] == [float(number) for number in rates]


def test_the_default_is_the_papers() -> None:
    told = reference_table("allinone.md", "## 11. Paper vs released code")
    choice = {"backbone": "allinone", "task": "retrieval", "dataset": "msrvtt-7k"}
    spec = resolve(discover(), **choice, flags={"data_root": "."})
    assert spec.losses == ("vtm", "mlm")
    assert str(spec.bilevel.every) == told["K"][0]
    assert str(spec.train.epochs) == told["epochs (retrieval)"][0]
    assert spec.bilevel.outer_lr == float(told["MELTR β"][0])
    (inner,) = (cells[0] for name, cells in told.items() if name.startswith("backbone optimiser"))
    _, rate, schedule = inner.split(", ")
    assert (spec.train.lr, f"{spec.train.schedule} decay") == (float(rate), schedule)


def test_weights_of_a_run_start_another_of_the_same_size(make_spec: Callable[..., RunSpec], tmp_path: Path) -> None:
    execute(make_spec(train__max_steps=1), run_dir=tmp_path / "first", registry=discover())
    weights = tmp_path / "first" / "checkpoints" / "last" / "backbone.safetensors"
    own = {"options__weights": weights, "options__vocabulary": tmp_path / "first" / "vocabulary.txt"}
    again = make_spec(train__max_steps=1, train__lr=1e-12, **own)
    execute(again, run_dir=tmp_path / "second", registry=discover())
    before, after = load_file(weights), load_file(tmp_path / "second" / "checkpoints" / "last" / "backbone.safetensors")
    assert before.keys() == after.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-6)
    with pytest.raises(UserError, match="checkpoint of another size"):
        execute(make_spec(options__size="ti", **own), run_dir=tmp_path / "third", registry=discover())


# Prediction


@pytest.fixture
def trained(make_spec: Callable[..., RunSpec], tmp_path: Path) -> Callable[..., tuple[Any, Data, RunContext]]:
    """Return a maker of a model as `meltr predict` has it."""

    def make(*choice: str, **settings: Any) -> tuple[Any, Data, RunContext]:
        spec = make_spec(*choice, train__max_steps=1, options__eval_batch_size=2, **settings)
        results = execute(spec, run_dir=tmp_path / "run", registry=discover())
        base = RunContext(spec, discover().task(spec.task), _options(spec), torch.device("cpu"), spec.losses)
        context = RunContext(**{**base.__dict__, "run_dir": tmp_path / "run", "weights_follow": True})
        data = Data(train=None, validation=None, meta=results["data"])  # type: ignore[arg-type]
        return AllInOneAdapter().build_model(context, data).eval(), data, context

    return make


def _options(spec: RunSpec) -> AllInOneOptions:
    return AllInOneOptions(**spec.options)


@torch.no_grad()
def test_search_ranks_every_video(trained: Callable[..., Any], clips: list[Path]) -> None:
    model, data, context = trained(losses="vtm,contrastive")
    request = PredictRequest(media=tuple(clips[:5]), search="a red ball moves", top=3)
    found = AllInOneAdapter().predict(model, request, data, context)
    assert len(found.rows) == 3
    scores = [row["score"] for row in found.rows]
    assert scores == sorted(scores, reverse=True)
    assert {row["video"] for row in found.rows} <= set(clips[:5])
    alone = AllInOneAdapter().predict(
        model, PredictRequest(media=(found.rows[0]["video"],), search="a red ball moves"), data, context
    )
    assert alone.rows[0]["score"] == pytest.approx(scores[0], abs=1e-5)
    assert "best of 5 files" in found.what


@torch.no_grad()
def test_questions_are_answered_among_all_or_some(trained: Callable[..., Any], sample: Any) -> None:
    model, data, context = trained("qa", "msvd")
    videos = tuple(sorted((sample("msvd") / "YouTubeClips").iterdir())[:3])
    asked = PredictRequest(media=videos, question="what colour is the ball?", top=2)
    rows = AllInOneAdapter().predict(model, asked, data, context).rows
    assert [row["video"] for row in rows] == [videos[0], videos[0], videos[1], videos[1], videos[2], videos[2]]
    assert all(row["answer"] in data.meta["answers"] for row in rows)
    names = tuple(data.meta["answers"][:2])
    some = PredictRequest(media=videos[:1], question="what colour is the ball?", choices=names)
    chosen = AllInOneAdapter().predict(model, some, data, context).rows
    assert {row["answer"] for row in chosen} == set(names)
    assert sum(row["probability"] for row in chosen) == pytest.approx(1, abs=1e-5)


@torch.no_grad()
def test_what_a_run_cannot_be_asked(trained: Callable[..., Any], clips: list[Path]) -> None:
    model, data, context = trained()
    with pytest.raises(UserError, match="finds videos by a text: it cannot use --question"):
        AllInOneAdapter().predict(model, PredictRequest(media=tuple(clips), question="?"), data, context)
    with pytest.raises(UserError, match="needs --search"):
        AllInOneAdapter().predict(model, PredictRequest(media=tuple(clips)), data, context)


# The command line


def test_real_data_is_asked_for_by_name(tmp_path: Path) -> None:
    words = ["run", "--backbone", "allinone", "--task", "retrieval", "--dataset", "msrvtt-7k"]
    result = call(*words, "--output-dir", tmp_path)
    assert result.exit_code == 2
    for name in ("--data-root", "train_list_7k.txt", "--sample"):
        assert name in result.output
    assert "Traceback" not in result.output
