"""A backbone of a few dozen lines on `meltr.video.VideoAdapter`: trained, evaluated, resumed and asked."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import command_line
import meltr
from meltr.context import Data, PredictRequest, RunContext
from meltr.engine.built_run import open_run
from meltr.engine.predicting import load_run
from meltr.engine.run import evaluate_run, execute
from meltr.errors import PluginError, UserError
from meltr.parallel.ranks import Ranks
from meltr.plugins import discover
from meltr.settings import resolve
from meltr.specs import RunSpec
from meltr.video import Split, miniature
from places import HELPERS
from ranks_helper import run_ranks
from video_backbone import Towers, TowersAdapter

pytest.importorskip("av")
pytest.importorskip("transformers")

PLUGIN = HELPERS / "video_backbone.py"
SIZES = {"train": 10, "validation": 4, "test": 6}
Make = Callable[..., RunSpec]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def make_spec(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Return a maker of small runs on synthetic samples."""
    monkeypatch.setenv("MELTR_CACHE", str(cache))

    def make(task: str, dataset: str, **settings: Any) -> RunSpec:
        sample(cache, dataset)
        flags = {"device": "cpu", "combiner": "sum", "sample": True, "train.batch_size": 4, "train.lr": 0.01}
        flags |= {"train.max_steps": 2} | {name.replace("__", "."): value for name, value in settings.items()}
        choice = {"backbone": "towers", "task": task, "dataset": dataset}
        return resolve(discover([PLUGIN]), **choice, flags=flags)

    return make


def sample(cache: Path, dataset: str) -> Path:
    folder = cache / "miniature" / f"{dataset}-0-v{miniature.VERSION}"
    if not folder.exists():
        splits = ("train", "test") if dataset.startswith(("tgif", "msrvtt", "kinetics")) else SIZES
        miniature.write(dataset, folder, sizes={split: SIZES[split] for split in splits})
    return folder


def prepared(spec: RunSpec, ranks: Ranks | None = None) -> tuple[TowersAdapter, Data, RunContext, Towers]:
    ranks = ranks or Ranks.single(torch.device("cpu"))
    context = open_run(spec, discover([PLUGIN]), run_dir=None, ranks=ranks)[1]
    torch.manual_seed(0)
    adapter = TowersAdapter()
    data = adapter.build_data(context)
    return adapter, data, context, adapter.build_model(context, data).eval()


def test_it_runs_evaluates_and_answers_from_the_command_line(cache: Path, tmp_path: Path, make_spec: Make) -> None:
    folder = sample(cache, "msvd")

    def call(*words: object) -> Any:
        result = command_line.call(*words)
        assert result.exit_code == 0, result.output
        return result

    words = ["run", "--plugin", PLUGIN, "--backbone", "towers", "--task", "qa", "--dataset", "msvd", "--sample"]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RANK", "WORLD_SIZE"):
            patch.delenv(name, raising=False)
        given = ["--device", "cpu", "--set", "max_steps=4", "--set", "batch_size=4"]
        call(*words, *given, "--output-dir", tmp_path, "--name", "run")
    run = tmp_path / "run"
    results = json.loads((run / "results.json").read_text())
    assert results["losses"] == ["right", "agree"]
    assert set(results["test"]["baselines"]) == {"question without the video"}
    rows = [json.loads(line) for line in (run / "predictions" / "test.jsonl").read_text().splitlines()]
    right = sum(row["predicted"] == row["right"] for row in rows)
    assert results["test"]["metrics"]["accuracy"] == pytest.approx(100 * right / len(rows))
    assert json.loads(call("evaluate", "--trust", run, "--json").stdout)["metrics"] == results["test"]["metrics"]
    clip = sorted((folder / "YouTubeClips").iterdir())[0]
    asked = ["--video", clip, "--question", "what colour is the ball?", "--top", 2, "--json"]
    answered = json.loads(call("predict", "--trust", run, *asked).stdout)
    assert [Path(row["video"]) for row in answered["rows"]] == [clip, clip]
    assert all(row["answer"] in results["data"]["answers"] for row in answered["rows"])


@pytest.mark.parametrize(
    ("task", "dataset", "metric", "facts"),
    [
        ("qa", "tgif-action", "accuracy", {"choices"}),
        ("retrieval", "msrvtt-7k", "v2t/r@1", set()),
        ("action", "kinetics400", "top5", {"answers"}),
    ],
)
def test_tasks_train_and_keep_their_numbers(
    make_spec: Make, tmp_path: Path, task: str, dataset: str, metric: str, facts: set[str]
) -> None:
    results = execute(make_spec(task, dataset), run_dir=tmp_path / "run", registry=discover([PLUGIN]))
    assert metric in results["test"]["metrics"]
    assert facts == {"choices", "answers"} & set(results["data"])
    again = evaluate_run(tmp_path / "run", registry=discover([PLUGIN]))
    assert again["metrics"] == results["test"]["metrics"]
    assert (tmp_path / "run" / "predictions" / "test.jsonl").is_file()


SHARED = (("qa", "msvd"), ("action", "kinetics400"), ("retrieval", "msrvtt-7k"))


def evaluated(ranks: Ranks, cache: str, *choices: str) -> list[dict[str, Any]]:
    """Return what this process finds in the test split for each ``TASK/DATASET``, and how many videos it encoded."""
    os.environ["MELTR_CACHE"] = cache
    found = []
    for choice in choices:
        task, _, dataset = choice.partition("/")
        flags = {"device": "cpu", "combiner": "sum", "sample": True, "options.eval_batch_size": 2}
        spec = resolve(discover([PLUGIN]), backbone="towers", task=task, dataset=dataset, flags=flags)
        adapter, data, context, model = prepared(spec, ranks)
        encoded: list[int] = []
        model.video = counted(model.video, encoded)  # type: ignore[method-assign]
        with torch.no_grad():
            result = adapter.evaluate(model, data.test, context)
        rows = json.dumps(result.predictions)
        found.append({"metrics": dict(result.metrics), "rows": rows, "count": result.count, "videos": sum(encoded)})
    return found


def counted(function: Callable[[torch.Tensor], torch.Tensor], sizes: list[int]) -> Callable[..., torch.Tensor]:
    def counting(frames: torch.Tensor) -> torch.Tensor:
        sizes.append(len(frames))
        return function(frames)

    return counting


def test_two_processes_share_an_evaluation_and_find_what_one_finds(cache: Path) -> None:
    """An odd number of batches of two examples: the first process has one more."""
    for _, dataset in SHARED:
        sample(cache, dataset)
    words = [cache, *("/".join(choice) for choice in SHARED)]
    first, second = (ended.result for ended in run_ranks(evaluated, words=words))
    alone = evaluated(Ranks.single(torch.device("cpu")), *map(str, words))
    for one, two, whole in zip(first, second, alone, strict=True):
        assert one["videos"] + two["videos"] == whole["videos"]
        assert one["videos"] == two["videos"] + 2
        for found in (one, two):
            assert found | {"videos": whole["videos"]} == whole


def test_retrieval_is_that_of_single_pairs(make_spec: Make) -> None:
    """Scores of a batch of videos and all texts against one video and one text at a time."""
    adapter, data, context, model = prepared(make_spec("retrieval", "msrvtt-7k", data__validation=4))
    split: Split = data.validation
    owners, texts = split.texts()
    assert (len(split.items), len(owners) > 4) == (4, True)
    with torch.no_grad():
        found = adapter.evaluate(model, split, context)
        vectors = [model.video(example["frames"][None])[0] for example in split.examples()]
        scores = torch.tensor([[float(model.text(ids[None])[0] @ v) for v in vectors] for ids in texts["ids"]])
    first = scores.argmax(1).tolist()
    assert found.metrics["r@1"] == pytest.approx(
        100 * sum(one == other for one, other in zip(first, owners, strict=True)) / len(owners)
    )
    assert [row["first"] for row in found.predictions] == [split.items[place].media for place in first]
    assert found.count == len(owners)


def test_a_search_and_a_class_of_files(make_spec: Make, cache: Path, tmp_path: Path) -> None:
    execute(make_spec("retrieval", "msrvtt-7k"), run_dir=tmp_path / "found", registry=discover([PLUGIN]))
    files = tuple(sorted((sample(cache, "msrvtt-7k") / "videos" / "all").iterdir())[:5])
    run = load_run(tmp_path / "found", registry=discover([PLUGIN]))
    ranked = run.predict(PredictRequest(files, search="a red ball moves", top=3))
    scores = [row["score"] for row in ranked.rows]
    assert (ranked.what, scores) == ("best of 5 files", sorted(scores, reverse=True))
    (alone,) = run.predict(PredictRequest((ranked.rows[0]["video"],), search="a red ball moves")).rows
    assert alone["score"] == pytest.approx(scores[0], abs=1e-6)
    with pytest.raises(UserError, match="it needs --search"):
        run.predict(PredictRequest(files))
    long = run.predict(PredictRequest(files, search="ball " * 30))
    assert long.what == "best of 5 files (the text is truncated to 16 tokens)"
    execute(make_spec("action", "kinetics400"), run_dir=tmp_path / "named", registry=discover([PLUGIN]))
    named = load_run(tmp_path / "named", registry=discover([PLUGIN])).predict(PredictRequest(files[:2], top=1))
    assert [row["video"] for row in named.rows] == list(files[:2])
    assert all(0 <= row["probability"] <= 1 and row["label"] for row in named.rows)


def test_an_answer_outside_the_vocabulary_is_counted_and_never_right(make_spec: Make) -> None:
    adapter, data, context, model = prepared(make_spec("qa", "msvd"))
    data.test.encoder.labels.classes.clear()
    assert data.test.examples()[0]["answer"] == -100
    found = adapter.evaluate(model, data.test, context)
    assert found.metrics["accuracy"] == 0
    assert found.details == {"answers_outside_vocabulary": found.count}


def test_batches_do_not_depend_on_who_reads_them(make_spec: Make) -> None:
    here, there = (
        list(prepared(make_spec("qa", "msvd", data__workers=workers))[1].train.batches(0)) for workers in (0, 1)
    )
    assert all(torch.equal(one[key], other[key]) for one, other in zip(here, there, strict=True) for key in one)


def test_what_an_adapter_lacks_is_named(make_spec: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    _, data, context, model = prepared(make_spec("qa", "msvd"))

    class Bare(TowersAdapter):
        answer_logits = meltr.video.VideoAdapter.answer_logits

    with pytest.raises(PluginError, match="Bare has no method answer_logits, which the task 'qa' needs") as refused:
        Bare().evaluate(model, data.test, context)
    assert "BackboneInfo.tasks" in str(refused.value.hint)
    with pytest.raises(TypeError, match="abstract"):
        meltr.video.VideoAdapter()  # type: ignore[abstract]


def test_broken_files_of_an_evaluation_are_skipped_if_asked(make_spec: Make, cache: Path, tmp_path: Path) -> None:
    """The metrics are those of the other items; what is skipped is counted, named, and no candidate of a baseline."""
    root = tmp_path / "data"
    shutil.copytree(sample(cache, "msvd"), root)
    choice = {"sample": False, "data_root": root, "options__save_predictions": True}
    adapter, data, context, model = prepared(make_spec("qa", "msvd", **choice))
    whole = adapter.evaluate(model, data.test, context)
    media = data.test.items[2].media
    path = data.test.corpus.media[media]
    path.write_bytes(path.read_bytes()[:300])
    lost = [item for item in data.test.items if item.media == media]
    with pytest.raises(UserError, match=rf"Cannot read test item \d+ \({lost[0].id}, video {media}\)"):
        adapter.evaluate(model, data.test, context)
    spec = make_spec("qa", "msvd", data__allow_missing=True, **choice)
    adapter, data, context, model = prepared(spec)
    for _ in range(2):  # The second evaluation knows already.
        found = adapter.evaluate(model, data.test, context)
        kept = [row for row in whole.predictions if row["id"] not in {item.id for item in lost}]
        assert list(found.predictions) == kept
        assert found.count == len(kept) == whole.count - len(lost)
        assert found.metrics["accuracy"] == pytest.approx(
            100 * sum(row["predicted"] == row["right"] for row in kept) / len(kept)
        )
        assert list(found.skipped_items) == [item.id for item in lost]
    reason = found.skipped_items[lost[0].id]
    assert f"({lost[0].id}, video {media})" in reason
    assert path.name in reason
    assert found.summary()["skipped_items"] == len(lost)
    for each in {item.media for item in data.test.items}:
        data.test.corpus.media[each].write_bytes(b"no film")
    with pytest.raises(UserError, match=f"None of the {len(data.test.items)} test items can be read. The first: test"):
        adapter.evaluate(model, data.test, context)


def test_a_run_names_and_counts_the_skipped_items_of_its_evaluations(
    make_spec: Make, cache: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(sample(cache, "msrvtt-7k"), root)
    spec = make_spec("retrieval", "msrvtt-7k", sample=False, data_root=root)
    (media, *_) = [item.media for item in prepared(spec)[1].test.items]
    execute(spec, run_dir=run, registry=discover([PLUGIN]))
    (path,) = (root / "videos").rglob(f"{media}.*")
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match=f"video {media}"):
        evaluate_run(run, registry=discover([PLUGIN]))
    found = evaluate_run(run, registry=discover([PLUGIN]), allow_missing=True)
    assert (found["skipped_items"], len(found["skipped_item_reasons"])) == (1, 1)
    spec = make_spec("retrieval", "msrvtt-7k", sample=False, data_root=root, data__allow_missing=True)
    results = execute(spec, run_dir=tmp_path / "other", registry=discover([PLUGIN]))
    assert results["test"]["skipped_items"] == 1
    assert (tmp_path / "other" / "log.txt").read_text().count(f"video {media}") == 1
