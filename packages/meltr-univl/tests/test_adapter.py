"""The adapter in whole runs: losses of every task, parts, evaluation, weights, prediction, the command line."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from command_line import call
from meltr.context import Data, PredictRequest, RunContext
from meltr.engine.built_run import open_run
from meltr.engine.run import execute
from meltr.errors import UserError
from meltr.parallel.ranks import Ranks
from meltr.plugins import discover
from meltr.settings import resolve
from meltr.specs import RunSpec
from meltr.video.tasks.captions import corpus_scores
from meltr.video.tasks.regression import sentiment_metrics
from meltr_univl.adapter import UnivlAdapter
from meltr_univl.losses.tasks import LOSSES
from meltr_univl.model.building import model_config, parts_of
from meltr_univl.options import UnivlOptions

MakeSpec = Callable[..., RunSpec]
SMALL = {
    "options.size": "tiny",
    "options.text_length": 20,
    "options.caption_length": 12,
    "options.video_length": 6,
    "options.eval_batch_size": 3,
    "options.meteor": False,
    "train.batch_size": 4,
    "train.log_every": 1,
}
EIGHT = set(LOSSES[:8])
TASKS = [
    ("retrieval", "msrvtt-7k", "align", EIGHT),
    ("retrieval", "youcook2", "align", EIGHT),
    ("captioning", "youcook2", "decoder", EIGHT),
    ("captioning", "msrvtt-full", "decoder", EIGHT),
    ("sentiment", "cmu-mosi", "score", EIGHT | {"score"}),
    ("captioning", "manifest", "decoder", EIGHT),
]


@pytest.fixture
def make_spec(sample: Callable[[str], Path]) -> MakeSpec:
    """Return a maker of small runs on miniatures."""

    def make(task: str = "retrieval", dataset: str = "msrvtt-7k", **settings: Any) -> RunSpec:
        sample(dataset)
        flags = {"device": "cpu", "combiner": "sum", "sample": True, **SMALL}
        flags |= {name.replace("__", "."): value for name, value in settings.items()}
        choice = {"backbone": "univl", "task": task, "dataset": dataset}
        return resolve(discover(), **choice, preset="none", flags=flags)

    return make


@pytest.fixture
def make_context(make_spec: MakeSpec) -> Callable[..., RunContext]:
    def make(*choice: str, run_dir: Path | None = None, **settings: Any) -> RunContext:
        spec = make_spec(*choice, **settings)
        return open_run(spec, discover(), run_dir=run_dir, ranks=Ranks.single(torch.device("cpu")))[1]

    return make


@pytest.mark.parametrize(("task", "dataset", "primary", "losses"), TASKS)
def test_every_task_has_its_losses_and_no_part_in_vain(
    make_context: Callable[..., RunContext], task: str, dataset: str, primary: str, losses: set[str]
) -> None:
    torch.manual_seed(0)
    adapter, context = UnivlAdapter(), make_context(task, dataset)
    data = adapter.build_data(context)
    model = adapter.build_model(context, data).train()
    found = adapter.compute_task_losses(model, next(iter(data.train.batches(0))), context)
    assert next(iter(found)) == primary
    assert set(found) == losses
    assert all(loss.shape == () and loss.isfinite() for loss in found.values())
    sum(found.values()).backward()  # type: ignore[union-attr]
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_draws_come_from_the_generator_of_the_context(make_context: Callable[..., RunContext]) -> None:
    adapter, context = UnivlAdapter(), make_context()
    data = adapter.build_data(context)
    model, batch = adapter.build_model(context, data), next(iter(data.train.batches(0)))

    def losses(seed: int) -> dict[str, float]:
        assert context.generator is not None
        context.generator.manual_seed(seed)
        return {name: loss.item() for name, loss in adapter.compute_task_losses(model, batch, context).items()}

    first, second = losses(1), losses(2)
    torch.rand(5)
    assert losses(1) == first
    assert {name for name in first if first[name] != second[name]} == {
        "cmlm",
        "cmfm",
        "m_joint",
        "m_align",
        "m_decoder",
    }


def test_parts_follow_losses_task_and_scoring() -> None:
    options = UnivlOptions()
    assert parts_of(options, "retrieval", ["joint"]) == ("align",)
    assert parts_of(UnivlOptions(scoring="joint"), "retrieval", ["joint"]) == ()
    assert parts_of(options, "captioning", ["decoder", "cmlm"]) == ("cmlm", "decoder")
    assert parts_of(options, "sentiment", ["score", "m_align"]) == ("align", "score")


def test_limits_of_the_tables_are_told() -> None:
    meta = {"vocabulary": 100, "video_dim": 7}
    config = model_config(UnivlOptions(size="tiny"), meta)
    assert (config.vocabulary, config.video_dim) == (100, 7)
    assert model_config(UnivlOptions(), meta).vocabulary == 30522
    with pytest.raises(UserError, match="text_length=200 is more than the 128 positions"):
        model_config(UnivlOptions(size="tiny", text_length=200), meta)
    with pytest.raises(UserError, match="40,000 tokens, the published model 30,522"):
        model_config(UnivlOptions(), {**meta, "vocabulary": 40_000})
    with pytest.raises(UserError, match="cannot keep 101 hypotheses"):
        model_config(UnivlOptions(size="tiny", beams=101), meta)


def test_no_decay_for_norms_and_biases_and_a_slower_text_encoder(make_context: Callable[..., RunContext]) -> None:
    adapter, context = UnivlAdapter(), make_context(options__text_lr_scale=0.1)
    model = adapter.build_model(context, adapter.build_data(context))
    names = {parameter: name for name, parameter in model.named_parameters()}
    seen = {
        names[parameter]: (group["lr_scale"], "weight_decay" in group)
        for group in adapter.parameter_groups(model, context)
        for parameter in group["params"]
    }
    assert len(seen) == len(names)
    assert seen["bert.encoder.layer.0.output.LayerNorm.weight"] == (0.1, True)
    assert seen["visual.encoder.layer.0.intermediate.dense.weight"] == (1.0, False)
    assert seen["normalize_video.visual_norm2d.weight"] == (1.0, False)
    assert seen["similarity_dense.bias"] == (1.0, True)


# Evaluation


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "predictions" / "test.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("scoring", ["align", "joint"])
def test_retrieval(make_spec: MakeSpec, tmp_path: Path, scoring: str) -> None:
    spec = make_spec(options__scoring=scoring, losses="align,joint", train__max_steps=1)
    results = execute(spec, run_dir=tmp_path / "run", registry=discover())
    rows = rows_of(tmp_path / "run")
    hits = sum(row["first"] == row["video"] for row in rows)
    assert results["test"]["metrics"]["r@1"] == pytest.approx(100 * hits / len(rows))
    assert results["test"]["details"]["scoring"] == scoring
    assert results["test"]["baselines"]["chance"]["r@1"] == pytest.approx(100 / 6)


def test_captions_are_scored_against_all_references(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec("captioning", "msrvtt-full", train__max_steps=2, losses="decoder,cmlm")
    results = execute(spec, run_dir=tmp_path / "run", registry=discover())
    rows = rows_of(tmp_path / "run")
    assert all(len(row["references"]) == 5 for row in rows)
    said = {row["id"]: row["caption"] for row in rows}
    again = corpus_scores(said, {row["id"]: row["references"] for row in rows}, meteor=False)
    for name in ("cider", "bleu4", "rouge_l"):
        assert results["test"]["metrics"][name] == pytest.approx(again.metrics[name])
    assert results["test"]["details"]["tokens"] == "whitespace"
    (baseline,) = results["test"]["baselines"]
    assert baseline.endswith("for every video")


def test_sentiment(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec("sentiment", "cmu-mosi", train__max_steps=2, losses="score,align")
    results = execute(spec, run_dir=tmp_path / "run", registry=discover())
    rows = rows_of(tmp_path / "run")
    again = sentiment_metrics([row["predicted"] for row in rows], [row["right"] for row in rows])
    assert results["test"]["metrics"]["mae"] == pytest.approx(again["mae"], abs=1e-4)
    assert results["test"]["baselines"]["training mean"]["corr"] == 0


def test_weights_of_a_run_start_another(make_spec: MakeSpec, tmp_path: Path) -> None:
    execute(make_spec(train__max_steps=1), run_dir=tmp_path / "first", registry=discover())
    weights = tmp_path / "first" / "checkpoints" / "last" / "backbone.safetensors"
    own = {"options__weights": weights, "options__vocabulary": tmp_path / "first" / "vocabulary.txt"}
    spec = make_spec("captioning", "youcook2", train__max_steps=1, train__lr=1e-12, **own)
    execute(spec, run_dir=tmp_path / "second", registry=discover())
    before, after = load_file(weights), load_file(tmp_path / "second" / "checkpoints" / "last" / "backbone.safetensors")
    assert before.keys() == after.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-6)


# Prediction


@pytest.fixture
def trained(make_spec: MakeSpec, tmp_path: Path) -> Callable[..., tuple[Any, Data, RunContext]]:
    """Return a maker of a model as ``meltr predict`` has it."""

    def make(*choice: str, **settings: Any) -> tuple[Any, Data, RunContext]:
        spec = make_spec(*choice, train__max_steps=1, **settings)
        results = execute(spec, run_dir=tmp_path / "run", registry=discover())
        base = RunContext(
            spec, discover().task(spec.task), UnivlOptions(**spec.options), torch.device("cpu"), spec.losses
        )
        context = dataclasses.replace(base, run_dir=tmp_path / "run", weights_follow=True)
        data = Data(train=None, validation=None, meta=results["data"])  # type: ignore[arg-type]
        return UnivlAdapter().build_model(context, data).eval(), data, context

    return make


@torch.no_grad()
def test_videos_are_captioned_best_first(trained: Any, sample: Any) -> None:
    model, data, context = trained("captioning", "youcook2", losses="decoder,align")
    videos = tuple(sorted((sample("youcook2") / "videos").iterdir())[:4])
    found = UnivlAdapter().predict(model, PredictRequest(media=videos, top=2), data, context)
    assert [row["video"] for row in found.rows[::2]] == list(videos) or len(found.rows) < 8
    for video in videos:
        scores = [row["log_probability"] for row in found.rows if row["video"] == video]
        captions = [row["caption"] for row in found.rows if row["video"] == video]
        assert scores == sorted(scores, reverse=True)
        assert len(set(captions)) == len(captions) <= 2


@torch.no_grad()
def test_search_ranks_videos_and_their_features_alike(trained: Any, sample: Any, cache: Path, tmp_path: Path) -> None:
    model, data, context = trained(losses="align,joint")
    videos = tuple(sorted((sample("msrvtt-7k") / "videos" / "all").iterdir())[:5])
    request = PredictRequest(media=videos, search="a red ball moves to the left", top=5)
    found = UnivlAdapter().predict(model, request, data, context)
    scores = [row["score"] for row in found.rows]
    assert scores == sorted(scores, reverse=True)
    assert {row["video"] for row in found.rows} == set(videos)
    (features,) = [folder for folder in (cache / "features").iterdir() if "msrvtt-7k" in folder.name]
    made = tuple(features / f"{video.stem}.npy" for video in videos)
    again = UnivlAdapter().predict(model, dataclasses.replace(request, media=made), data, context)
    assert [row["video"].stem for row in again.rows] == [row["video"].stem for row in found.rows]
    assert [row["score"] for row in again.rows] == pytest.approx(scores, abs=1e-5)


@torch.no_grad()
def test_the_sentiment_of_a_clip(trained: Any, sample: Any) -> None:
    model, data, context = trained("sentiment", "cmu-mosi", losses="score,align")
    clips = tuple(sorted((sample("cmu-mosi") / "Segmented").iterdir())[:3])
    found = UnivlAdapter().predict(model, PredictRequest(media=clips), data, context)
    assert [row["video"] for row in found.rows] == list(clips)
    assert all(np.isfinite(row["score"]) for row in found.rows)


@torch.no_grad()
def test_what_a_run_cannot_do(trained: Any, sample: Any, tmp_path: Path) -> None:
    model, data, context = trained(losses="align,joint")
    adapter, videos = UnivlAdapter(), tuple(sorted((sample("msrvtt-7k") / "videos" / "all").iterdir())[:1])
    with pytest.raises(UserError, match="finds videos by a text: it needs --search"):
        adapter.predict(model, PredictRequest(media=videos), data, context)
    unknown = dataclasses.replace(data, meta={**data.meta, "features": {**data.meta["features"], "extractor": None}})
    with pytest.raises(UserError, match="do not name their extractor"):
        adapter.predict(model, PredictRequest(media=videos, search="x"), unknown, context)
    narrow = tmp_path / "narrow.npy"
    np.save(narrow, np.zeros((3, 5), dtype=np.float32))
    with pytest.raises(UserError, match="features of dimension 5"):
        adapter.predict(model, PredictRequest(media=(narrow,), search="x"), data, context)
    np.save(narrow, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"narrow.npy is truncated or corrupt: .* an array of objects"):
        adapter.predict(model, PredictRequest(media=(narrow,), search="x"), data, context)


# The command line


def test_real_data_is_asked_for_by_name(tmp_path: Path) -> None:
    words = [
        "run",
        "--backbone",
        "univl",
        "--task",
        "captioning",
        "--dataset",
        "youcook2",
        "--output-dir",
        str(tmp_path),
    ]
    result = call(*words)
    assert result.exit_code == 2
    for name in ("--data-root", "youcookii_annotations_trainval.json", "--sample"):
        assert name in result.output
    assert "Traceback" not in result.output
