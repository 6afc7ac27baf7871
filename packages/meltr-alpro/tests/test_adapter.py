"""The adapter in whole runs: losses of every task, frames, weights, resume, and the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import meltr
from command_line import assert_stopped, call
from drawing import assert_draws_come_from_the_context
from meltr.context import RunContext
from meltr.engine.run import execute
from meltr.errors import UserError
from meltr.plugins import discover
from meltr.settings import resolve
from meltr.specs import RunSpec
from meltr.video.frames.media import decode
from meltr_alpro.adapter import AlproAdapter
from meltr_alpro.clips import distinct, strided
from meltr_fixtures import Sample
from messages import Messages
from places import reference_table

MakeContext = Callable[..., RunContext]
MakeSpec = Callable[..., RunSpec]


@pytest.mark.parametrize(
    ("task", "dataset", "losses"),
    [
        ("qa", "msvd", "answer,vtc,vtm,mlm,pem"),
        ("qa", "msrvtt", "answer,vtm"),
        ("retrieval", "msrvtt-7k", "vtm,vtc,mlm,pem"),
        ("retrieval", "msrvtt-9k", "vtm"),
        ("retrieval", "manifest", "vtm,mlm"),
    ],
)
def test_every_task_has_its_losses_and_trains_what_it_has(
    make_context: MakeContext, task: str, dataset: str, losses: str
) -> None:
    context = make_context(task, dataset, losses=losses)
    adapter = AlproAdapter()
    data = adapter.build_data(context)
    assert not data.left_out
    model = adapter.build_model(context, data).train()
    batch = next(iter(data.train.batches(0)))
    found = adapter.compute_task_losses(model, batch, context)
    assert tuple(found) == tuple(losses.split(","))
    sum(found.values()).backward()  # type: ignore[union-attr]
    assert not [name for name, p in model.named_parameters() if p.requires_grad != (p.grad is not None)]


def test_all_draws_come_from_the_generator_of_the_context(make_context: MakeContext) -> None:
    assert_draws_come_from_the_context(AlproAdapter(), make_context(), "pem")


# Frames


def pixels(file: Path, numbers: tuple[int, ...]) -> np.ndarray:
    frames = decode(file, lambda total: numbers).frames
    small = [np.asarray(Image.fromarray(each).resize((32, 32), Image.Resampling.BILINEAR)) for each in frames]
    return np.stack(small).transpose(0, 3, 1, 2)


def test_frames_of_evaluation_are_scaled_to_squares(make_context: MakeContext) -> None:
    for sampling in ("middles", "released"):
        context = make_context(options__eval_sampling=sampling)
        data = AlproAdapter().build_data(context)
        found = next(iter(data.test.batches(1, torch.device("cpu"))))["video"][0].numpy()
        item = data.test.items[0]
        file = data.test.corpus.media[item.media]
        total = decode(file, lambda count: (0,)).total
        middles = ((total // 2 - 1) // 2, (total // 2 + total - 1) // 2)
        assert np.array_equal(found, pixels(file, (0, total // 2) if sampling == "released" else middles))


def test_training_clips_are_drawn_anew_and_are_the_same_for_the_same_epoch(make_context: MakeContext) -> None:
    context = make_context(options__sampling="random")
    data = AlproAdapter().build_data(context)
    first, again, other = (
        {bytes(row.numpy().tobytes()) for batch in data.train.batches(epoch) for row in batch["video"]}
        for epoch in (0, 0, 1)
    )
    assert first == again
    assert first != other
    fixed = AlproAdapter().build_data(make_context())
    one, two = (next(iter(fixed.test.batches(2, torch.device("cpu")))) for _ in range(2))
    assert torch.equal(one["video"], two["video"])


def test_frame_numbers() -> None:
    assert strided(35, 16) == tuple(range(0, 32, 2)), "the end is never seen"
    assert strided(9, 16) == (0,) * 16
    for total in (5, 16, 100):
        found = distinct(total, 16)
        assert len(found) == 16
        assert list(found) == sorted(found)
        assert 0 <= found[0] <= found[-1] < total
        assert len(set(found)) == min(total, 16) or total < 16


def test_questions_with_choices_are_refused(make_context: MakeContext, sample: Sample, tmp_path: Path) -> None:
    clip = next((sample("msvd") / "YouTubeClips").iterdir())
    (tmp_path / clip.name).write_bytes(clip.read_bytes())
    row = {"video": clip.name, "split": "train", "question": "what?", "choices": ["a", "b"], "answer": "a"}
    (tmp_path / "manifest.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match="have choices, but ALPRO answers from a vocabulary"):
        AlproAdapter().build_data(make_context("qa", "manifest", data_root=tmp_path))


# Weights and settings


def test_weights_of_a_run_start_another_and_the_lack_of_a_prompter_is_told(make_spec: MakeSpec, tmp_path: Path) -> None:
    first = make_spec("retrieval", "msrvtt-7k", losses="vtm,vtc", train__max_steps=1)
    execute(first, run_dir=tmp_path / "first", registry=discover())
    weights = tmp_path / "first" / "checkpoints" / "last" / "backbone.safetensors"
    seen = Messages()
    words = {"options__weights": weights, "options__vocabulary": tmp_path / "first" / "vocabulary.txt"}
    spec = make_spec(**words, options__frames=4, train__max_steps=1, train__lr=1e-12)
    results = execute(spec, run_dir=tmp_path / "second", registry=discover(), observers=[seen])
    assert results["losses"] == ["answer", "vtc", "vtm", "mlm"]
    assert f"without the loss pem: {weights} holds no prompter" in seen.lines
    (line,) = [line for line in seen.lines if str(weights) in line and "loaded" in line]
    assert "stay as initialised (mlm_head, classifier)" in line
    assert "visual_encoder.time_embed: 2 frames repeated or thinned out to 4" in line
    before, after = load_file(weights), load_file(tmp_path / "second" / "checkpoints" / "last" / "backbone.safetensors")
    for name, value in before.items():
        if name != "visual_encoder.time_embed":
            torch.testing.assert_close(after[name], value, rtol=0, atol=1e-6)
    assert json.loads(call("evaluate", tmp_path / "second", "--json").stdout)["metrics"] == results["test"]["metrics"]


def test_sizes_and_the_vocabulary_of_the_published_model(make_context: MakeContext) -> None:
    adapter, context = AlproAdapter(), make_context(options__text_length=100)
    data = adapter.build_data(context)
    with pytest.raises(UserError, match="text_length=100 is more than the 64 positions"):
        adapter.build_model(context, data)
    large = make_context(options__size="base", losses="answer,vtc")
    huge = meltr.Data(train=data.train, validation=None, meta={**data.meta, "vocabulary": 40_000})
    with pytest.raises(UserError, match="40,000 tokens, the published model 30,522"):
        adapter.build_model(large, huge)


def test_default_and_released_settings_are_those_of_the_reference() -> None:
    told = reference_table("alpro.md", "## 4. MSVD-QA fine-tuning")
    choice = {"backbone": "alpro", "task": "qa", "dataset": "msvd"}
    spec = resolve(discover(), **choice, flags={"data_root": "."})
    assert told["frames / size"][0].startswith(f"{spec.options['frames']}, {spec.options['image_size']}²")
    epochs, rate, *_ = told["epochs, lr"][0].split(", ")
    assert (str(spec.train.epochs), spec.train.lr) == (epochs, float(rate))
    assert (spec.train.optimizer, spec.train.weight_decay, spec.train.eps) == ("adamw", 0, 1e-6)
    assert "betas {}/{}, eps 1e-6, **weight decay 0**".format(*spec.train.betas) in told["optimiser"][0]
    assert told["gradient clip"] == [f"{spec.train.clip_norm:g}"]
    assert spec.losses == ("answer", "vtc", "vtm", "mlm", "pem")
    assert spec.options["video_weights"] == "all"
    released = resolve(discover(), **choice, flags={"data_root": ".", "fidelity": "released"})
    found = {name: released.options[name] for name in ("video_weights", "pem_ignore", "eval_sampling")}
    assert set(found.values()) == {"released"}


# The command line


def run(task: str, dataset: str, folder: Path, *more: object) -> tuple[Path, dict[str, Any]]:
    words = ["run", "--backbone", "alpro", "--task", task, "--dataset", dataset, "--sample", "--device", "cpu"]
    small = ["options.frames=2", "options.image_size=32", "batch_size=4", "max_steps=4", "options.rerank=2"]
    sets = [word for setting in (*small, "estimator=per_task") for word in ("--set", setting)]
    result = call(*words, *sets, *more, "--output-dir", folder, "--name", "run")
    assert result.exit_code == 0, result.output
    return folder / "run", json.loads((folder / "run" / "results.json").read_text())


def rows_of(*words: object) -> list[dict[str, Any]]:
    result = call("predict", *words, "--device", "cpu", "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["rows"]


def test_questions_from_the_command_line(sample: Sample, tmp_path: Path) -> None:
    clips = sorted((sample("msvd") / "YouTubeClips").iterdir())[:2]
    folder, results = run("qa", "msvd", tmp_path)
    assert results["losses"] == ["answer", "vtc", "vtm", "mlm", "pem"]
    assert (results["steps"], results["outer_steps"]) == (4, 1)
    lines = [json.loads(line) for line in (folder / "predictions" / "test.jsonl").read_text().splitlines()]
    right = sum(line["predicted"] == line["right"] for line in lines)
    assert results["test"]["metrics"]["accuracy"] == pytest.approx(100 * right / len(lines))
    evaluated = json.loads(call("evaluate", folder, "--json").stdout)
    assert evaluated["metrics"] == results["test"]["metrics"]
    asked = ["--question", "what colour is the ball?", "--top", 2]
    found = rows_of(folder, "--video", clips[0], "--video", clips[1], *asked)
    assert [Path(row["video"]) for row in found] == [clips[0], clips[0], clips[1], clips[1]]
    assert all(row["answer"] in results["data"]["answers"] for row in found)
    alone = rows_of(folder, "--video", clips[1], *asked)
    assert [row["answer"] for row in alone] == [row["answer"] for row in found[2:]]
    assert [row["probability"] for row in alone] == pytest.approx([row["probability"] for row in found[2:]], rel=1e-4)


def test_retrieval_from_the_command_line(sample: Sample, tmp_path: Path) -> None:
    videos = sample("msrvtt-7k") / "videos" / "all"
    folder, results = run("retrieval", "msrvtt-7k", tmp_path, "--combiner", "sum")
    assert {"r@1", "medr", "v2t/r@10"} <= set(results["test"]["metrics"])
    evaluated = json.loads(call("evaluate", folder, "--json").stdout)
    assert evaluated["metrics"] == results["test"]["metrics"]
    found = rows_of(folder, "--search", "a red ball moves", "--videos", videos, "--top", 3)
    scores = [row["score"] for row in found]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)


def test_real_data_is_asked_for_by_name(tmp_path: Path) -> None:
    words = ["run", "--backbone", "alpro", "--task", "qa", "--dataset", "msvd", "--output-dir", tmp_path]
    assert_stopped(call(*words), "--data-root", "train_qa.json", "--sample")
    assert_stopped(call(*words, "--sample", "--set", "image_size=50"), "image_size=50 is not a multiple of 16")
