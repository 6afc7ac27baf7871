"""The adapter in whole runs: losses of every task, what is left out, weights, and the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import command_line
import meltr
from meltr.context import RunContext
from meltr.engine.run import execute
from meltr.errors import UserError
from meltr.plugins import discover
from meltr.specs import RunSpec
from meltr_violet.adapter import VioletAdapter
from messages import Messages

MakeContext = Callable[..., RunContext]
MakeSpec = Callable[..., RunSpec]
TASKS = [
    ("qa", "msvd", ("answer", "vtm", "mtm", "mvm"), {"answer", "vtm", "mtm", "mvm"}),
    ("qa", "tgif-action", ("answer", "vtm", "mtm", "mvm"), {"choice", "vtm", "mtm", "mvm"}),
    ("qa", "tgif-frame", ("answer", "vtm", "mtm", "mvm"), {"answer", "vtm", "mtm", "mvm"}),
    ("retrieval", "msrvtt-7k", ("vtm", "mtm", "mvm"), {"vtm", "mtm", "mvm"}),
    ("action", "kinetics400", ("classification", "mvm"), {"answer", "mvm"}),
    ("retrieval", "manifest", ("vtm", "mtm", "mvm"), {"vtm", "mtm", "mvm"}),
]


def heads_of(model: torch.nn.Module) -> set[str]:
    return {name for name in ("vtm", "mtm", "mvm", "answer", "choice") if getattr(model, name) is not None}


@pytest.mark.parametrize(("task", "dataset", "names", "heads"), TASKS)
def test_losses_of_every_task(
    make_context: MakeContext, task: str, dataset: str, names: tuple[str, ...], heads: set[str]
) -> None:
    torch.manual_seed(0)
    adapter, context = VioletAdapter(), make_context(task, dataset, options__text_length=40)
    data = adapter.build_data(context)
    model = adapter.build_model(context, data)
    assert heads_of(model) == heads
    batch = next(iter(data.train.batches(0)))
    losses = adapter.compute_task_losses(model.train(), batch, context)
    assert tuple(losses) == names == context.losses
    for loss in losses.values():
        assert loss.shape == ()
        assert 0 < loss.item() < 20
    sum(losses.values()).backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


def test_random_numbers_come_from_the_generator_of_the_context(make_context: MakeContext) -> None:
    adapter, context = VioletAdapter(), make_context(options__answer_dropout=0)
    data = adapter.build_data(context)
    model = adapter.build_model(context, data)
    batch = next(iter(data.train.batches(0)))

    def losses(seed: int, *wanted: str) -> dict[str, float]:
        context.generator.manual_seed(seed)
        found = adapter.compute_task_losses(model, batch, context.with_losses(*(wanted or context.losses)))
        return {name: loss.item() for name, loss in found.items()}

    first = losses(1)
    torch.rand(7)
    assert losses(1) == first
    assert losses(2) != first
    assert losses(1, "answer") == {"answer": first["answer"]}
    assert losses(1, "answer", "mtm") == pytest.approx({name: first[name] for name in ("answer", "mtm")})


def test_losses_that_are_off_need_no_head(make_context: MakeContext) -> None:
    adapter = VioletAdapter()
    for losses, heads in (("answer,vtm", {"answer", "vtm"}), ("answer", {"answer"})):
        context = make_context(losses=losses)
        assert heads_of(adapter.build_model(context, adapter.build_data(context))) == heads
    context = make_context("retrieval", "msrvtt-7k", losses="vtm,mvm")
    assert heads_of(adapter.build_model(context, adapter.build_data(context))) == {"vtm", "mvm"}


def test_without_codes_the_run_goes_on_and_says_so(make_spec: MakeSpec, tmp_path: Path) -> None:
    seen = Messages()
    spec = make_spec(options__codes="none", train__max_steps=2)
    results = execute(spec, run_dir=tmp_path / "run", registry=discover(), observers=[seen])
    assert results["losses"] == ["answer", "vtm", "mtm"]
    assert "without the loss mvm: codes=none" in seen.lines
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(set(line["losses"]) == {"answer", "vtm", "mtm"} for line in lines if line["kind"] == "train")
    names = load_file(tmp_path / "run" / "checkpoints" / "last" / "backbone.safetensors")
    assert not [name for name in names if name.startswith("mvm.")]


# Weights


def test_weights_of_a_run_start_another_and_every_key_is_told(make_spec: MakeSpec, tmp_path: Path) -> None:
    execute(make_spec("retrieval", "msrvtt-7k", train__max_steps=1), run_dir=tmp_path / "first", registry=discover())
    weights = tmp_path / "first" / "checkpoints" / "last" / "backbone.safetensors"
    words = tmp_path / "first" / "vocabulary.txt"
    seen = Messages()
    spec = make_spec(options__weights=weights, options__vocabulary=words, train__max_steps=1, train__lr=1e-12)
    execute(spec, run_dir=tmp_path / "second", registry=discover(), observers=[seen])
    (line,) = [line for line in seen.lines if str(weights) in line]
    assert "stay as initialised (answer)" in line
    before, after = load_file(weights), load_file(tmp_path / "second" / "checkpoints" / "last" / "backbone.safetensors")
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("keys", "looks_like"),
    [
        (("bert.embeddings.word_embeddings.weight", "visual.x", "cross.x", "decoder.x"), "a UniVL checkpoint"),
        (("visual_encoder.x", "text_encoder.y"), "an ALPRO checkpoint"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(
    make_context: MakeContext, tmp_path: Path, keys: tuple[str, ...], looks_like: str
) -> None:
    save_file({key: torch.zeros(2) for key in keys}, tmp_path / "other.safetensors")
    adapter, context = VioletAdapter(), make_context(options__weights=tmp_path / "other.safetensors")
    data = adapter.build_data(context)
    with pytest.raises(UserError, match=f"is not a VIOLET checkpoint.*{looks_like}"):
        adapter.build_model(context, data)
    absent = make_context(options__weights=tmp_path / "absent.pt")
    with pytest.raises(UserError, match=r"no file of weights .*absent\.pt"):
        adapter.build_model(absent, data)


def test_texts_and_vocabularies_beyond_the_model(make_context: MakeContext, tmp_path: Path) -> None:
    adapter, context = VioletAdapter(), make_context(options__text_length=100)
    data = adapter.build_data(context)
    with pytest.raises(UserError, match="text_length=100 is more than the 64 positions"):
        adapter.build_model(context, data)
    large = make_context(options__size="base")
    huge = meltr.Data(train=data.train, validation=None, meta={**data.meta, "vocabulary": 40_000})
    with pytest.raises(UserError, match="40,000 tokens, the published model 30,522"):
        adapter.build_model(large, huge)


# The command line


def call(*words: object) -> Any:
    result = command_line.call(*words)
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.slow
def test_run_evaluate_and_predict_from_the_command_line(sample: Callable[[str], Path], tmp_path: Path) -> None:
    folder = sample("msvd")
    words = ["run", "--backbone", "violet", "--task", "qa", "--dataset", "msvd", "--sample", "--device", "cpu"]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RANK", "WORLD_SIZE"):
            patch.delenv(name, raising=False)
        call(*words, "--set", "max_steps=4", "--set", "batch_size=4", "--output-dir", tmp_path, "--name", "run")
    run = tmp_path / "run"
    results = json.loads((run / "results.json").read_text())
    assert results["steps"] == 4
    assert results["losses"] == ["answer", "vtm", "mtm", "mvm"]
    (baseline,) = results["test"]["baselines"]
    assert baseline == "question without the video"
    evaluated = json.loads(call("evaluate", run, "--json").stdout)
    assert evaluated["metrics"] == results["test"]["metrics"]
    clips = sorted((folder / "YouTubeClips").iterdir())[:2]
    asked = ["--question", "what colour is the ball?", "--top", 2, "--json"]
    answered = json.loads(call("predict", run, "--video", clips[0], "--video", clips[1], *asked).stdout)
    assert [Path(row["video"]) for row in answered["rows"]] == [clips[0], clips[0], clips[1], clips[1]]
    assert all(row["answer"] in results["data"]["answers"] for row in answered["rows"])


def test_real_data_is_asked_for_by_name(tmp_path: Path) -> None:
    words = ["run", "--backbone", "violet", "--task", "qa", "--dataset", "msvd", "--output-dir", str(tmp_path)]
    result = command_line.call(*words)
    assert result.exit_code == 2
    for name in ("--data-root", "train_qa.json", "img_msvd.pkl", "--sample"):
        assert name in result.output
    assert "Traceback" not in result.output
