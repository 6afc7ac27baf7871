"""What a trained run says about files: the model's own answer to clips and texts made by hand, without the data set."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from meltr.context import PredictRequest
from meltr.engine.predicting import TrainedRun, load_run
from meltr.engine.run import evaluate_run, execute
from meltr.errors import UserError
from meltr.plugins import discover
from meltr.specs import RunSpec
from meltr.video.frames.media import decode
from meltr.video.text.wordpiece import Tokenizer
from meltr_violet.data.code_file import CodeSettings, CodeTable
from video_files import write_video

MakeRun = Callable[[str], TrainedRun]
TASKS = {
    "answers": ("qa", "msvd", {"options__text_length": 24}),
    "choices": ("qa", "tgif-transition", {"options__text_length": 40}),
    "search": ("retrieval", "msrvtt-7k", {}),
    "action": ("action", "kinetics400", {"options__text_length": 3}),
}


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Trained runs, by name; filled when they are first asked for."""
    return {"": tmp_path_factory.mktemp("runs")}


@pytest.fixture
def trained(runs: dict[str, Path], make_spec: Callable[..., RunSpec], monkeypatch: pytest.MonkeyPatch) -> MakeRun:
    """Return a maker of `TrainedRun`: of a run of two steps, with nothing left of its data set."""

    def make(name: str) -> TrainedRun:
        if name not in runs:
            task, dataset, settings = TASKS[name]
            spec = make_spec(task, dataset, train__max_steps=2, train__lr=1e-2, options__eval_batch_size=3, **settings)
            execute(spec, run_dir=runs[""] / name, registry=discover())
            runs[name] = runs[""] / name
        monkeypatch.setenv("MELTR_CACHE", str(runs[""] / "nothing"))
        return load_run(runs[name], registry=discover())

    return make


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Videos of 2 to 40 frames, each with another first picture, and an image."""
    folder = tmp_path_factory.mktemp("videos")
    files = [write_video(folder / f"{n}.mp4", n, first=20 * n) for n in (2, 7, 13, 40)]
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)).save(folder / "i.png")
    return [*files, folder / "i.png"]


def clip(file: Path) -> Tensor:
    """Return two frames of a file, padded to squares of 64 pixels by hand, (1, 2, 3, 64, 64)."""
    pictures = []
    for frame in decode(file, lambda total: (total // 3, 2 * total // 3)).frames:
        side = max(frame.shape[:2])
        top, left = ((side - edge) // 2 for edge in frame.shape[:2])
        square = np.zeros((side, side, 3), np.uint8)
        square[top : top + frame.shape[0], left : left + frame.shape[1]] = frame
        resized = Image.fromarray(square).resize((64, 64), Image.Resampling.BILINEAR)
        pictures.append(torch.tensor(np.asarray(resized)).permute(2, 0, 1))
    return torch.stack(pictures)[None]


def state(run: TrainedRun, file: Path, text: str) -> Tensor:
    """Return the state of [CLS] of one clip with one text, (D,)."""
    length = run.context.options.text_length
    ids = Tokenizer(run.context.run_dir / "vocabulary.txt", length=length).encode([text])
    with torch.no_grad():
        return run.model.eval()(clip(file), ids)[0, -length]


def check(rows: list[dict[str, Any]], names: list[str], expected: Tensor, column: str) -> None:
    """Check that rows hold the best names, in order, with their probabilities."""
    best = expected.softmax(0).topk(len(rows))
    assert [row[column] for row in rows] == [names[index] for index in best.indices]
    assert [row["probability"] for row in rows] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_answers_of_every_file(trained: MakeRun, videos: list[Path]) -> None:
    run, question = trained("answers"), "what colour is the ball?"
    prediction = run.predict(PredictRequest(tuple(videos), question, top=4))
    assert prediction.what == "most probable answers"
    assert len(prediction.rows) == 4 * len(videos)
    for number, file in enumerate(videos):
        rows = list(prediction.rows[4 * number : 4 * number + 4])
        assert [row["image" if file.suffix == ".png" else "video"] for row in rows] == [file] * 4
        with torch.no_grad():
            check(rows, run.data.meta["answers"], run.model.answer(state(run, file, question)), "answer")


def test_answers_among_those_given(trained: MakeRun, videos: list[Path]) -> None:
    run, question = trained("answers"), "what colour is the ball?"
    names = ["red", "blue", "green"]
    rows = run.predict(PredictRequest(tuple(videos[:1]), question, tuple(names), top=5)).rows
    with torch.no_grad():
        logits = run.model.answer(state(run, videos[0], question))
    chosen = logits[[run.data.meta["answers"].index(name) for name in names]]
    check(list(rows), names, chosen, "answer")
    assert sum(row["probability"] for row in rows) == pytest.approx(1, abs=1e-5)
    with pytest.raises(UserError, match=r"'blu' is not among the .* answers that this run knows") as refused:
        run.predict(PredictRequest(tuple(videos[:1]), question, ("red", "blu")))
    assert "Closest answers: blue" in str(refused.value)


def test_choices_are_scored_each_with_all(trained: MakeRun, videos: list[Path]) -> None:
    """Three choices although the run was trained on five."""
    run, question, choices = trained("choices"), "what does the ball do?", ("move left", "spin", "grow")
    rows = run.predict(PredictRequest(tuple(videos), question, choices)).rows
    assert len(rows) == 3 * len(videos)
    for number, file in enumerate(videos):
        texts = [f"{question} Options: {' '.join(choices)} Answer: {choice}" for choice in choices]
        with torch.no_grad():
            scores = torch.cat([run.model.choice(state(run, file, text)) for text in texts])
        check(list(rows[3 * number : 3 * number + 3]), list(choices), scores, "answer")


def test_search_ranks_all_files_and_encodes_each_once(
    trained: MakeRun, videos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, text, encoded = trained("search"), "a red ball moves", []
    encode = run.model.encode_video
    with torch.no_grad():
        scores = [float(run.model.vtm(state(run, file, text)).sigmoid()) for file in videos]
    monkeypatch.setattr(run.model, "encode_video", lambda frames: (encoded.append(len(frames)), encode(frames))[1])
    prediction = run.predict(PredictRequest(tuple(videos), search=text, top=4))
    assert encoded == [3, 2]
    order = sorted(range(len(videos)), key=lambda i: -scores[i])[:4]
    assert [next(row[key] for key in ("video", "image") if key in row) for row in prediction.rows] == [
        videos[i] for i in order
    ]
    assert [row["score"] for row in prediction.rows] == pytest.approx([scores[i] for i in order], abs=1e-5)
    assert prediction.what == "best of 5 files"


def test_actions(trained: MakeRun, videos: list[Path]) -> None:
    run = trained("action")
    rows = run.predict(PredictRequest(tuple(videos[:1]), top=100)).rows
    names = run.data.meta["answers"]
    assert {row["label"] for row in rows} == set(names)
    with torch.no_grad():
        check(list(rows), names, run.model.answer(state(run, videos[0], "")), "label")


@pytest.mark.parametrize("name", TASKS)
def test_a_run_is_evaluated_with_its_own_vocabulary(
    trained: MakeRun, runs: dict[str, Path], cache: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The miniature's vocabulary is gone from the cache; that of the run is read, and nothing is written over."""
    run = trained(name)
    stored = [runs[name] / "predictions" / "test.jsonl", runs[name] / "vocabulary.txt"]
    before = [file.read_text() for file in stored]
    monkeypatch.setenv("MELTR_CACHE", str(cache))
    shutil.rmtree(cache / "vocabularies", ignore_errors=True)
    found = evaluate_run(runs[name], registry=discover())
    assert not (cache / "vocabularies").exists()
    assert found["count"] == len(before[0].splitlines())
    assert [file.read_text() for file in stored] == before
    assert run.checkpoint == found["checkpoint"]


REFUSED = [
    ("answers", {"search": "a ball"}, "answers questions about videos: it cannot use --search", "--question"),
    ("answers", {}, "it needs --question", "--question"),
    ("choices", {"question": "what?"}, "it needs --choices", "--choices a,b,c"),
    ("search", {"question": "what?"}, "finds videos by a text: it cannot use --question", "--search"),
    ("search", {}, "it needs --search", "--videos DIR"),
    ("action", {"question": "what?"}, "names the action of a video: it cannot use --question", "--video FILE"),
    ("action", {"search": "what?"}, "cannot use --search", "--video FILE"),
]


@pytest.mark.parametrize(("name", "asked", "message", "hint"), REFUSED)
def test_what_a_run_cannot_use_is_refused_with_the_right_command(
    trained: MakeRun, videos: list[Path], name: str, asked: dict[str, Any], message: str, hint: str
) -> None:
    run = trained(name)
    with pytest.raises(UserError, match=message) as refused:
        run.predict(PredictRequest(tuple(videos[:1]), **asked))
    assert f"meltr predict {run.context.run_dir} " in str(refused.value.hint)
    assert hint in str(refused.value.hint)


def test_a_long_question_is_cut_and_a_broken_file_named(trained: MakeRun, videos: list[Path], tmp_path: Path) -> None:
    run = trained("answers")
    prediction = run.predict(PredictRequest(tuple(videos[:1]), "what " * 30 + "?"))
    assert prediction.what == "most probable answers (the text is truncated to 24 tokens)"
    (tmp_path / "cut.mp4").write_bytes(videos[3].read_bytes()[:700])
    with pytest.raises(UserError, match=r"cut\.mp4"):
        run.predict(PredictRequest((videos[0], tmp_path / "cut.mp4"), "what is it?"))


def test_files_that_were_needed_for_training_may_be_gone(
    trained: MakeRun, runs: dict[str, Path], make_spec: Callable[..., RunSpec], cache: Path, videos: list[Path],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Weights, vocabulary and codes were given as files, and then deleted: predict and evaluate do without."""
    trained("answers")
    monkeypatch.setenv("MELTR_CACHE", str(cache))
    weights = shutil.copy(runs["answers"] / "checkpoints" / "best" / "backbone.safetensors", tmp_path)
    vocabulary = shutil.copy(runs["answers"] / "vocabulary.txt", tmp_path)
    codes = tmp_path / "codes.safetensors"
    table = CodeTable(CodeSettings(2, "centres", 64, "f" * 64))
    table.rows = {"vid1": np.ones((2, 2, 2), np.int16)}
    table.write(codes)
    given = {"options__weights": weights, "options__vocabulary": vocabulary, "options__codes": str(codes)}
    spec = make_spec("qa", "msvd", train__max_steps=1, options__text_length=24, **given)
    results = execute(spec, run_dir=tmp_path / "run", registry=discover())
    assert results["losses"] == ["answer", "vtm", "mtm", "mvm"]
    for file in (weights, vocabulary, codes):
        Path(file).unlink()
    assert evaluate_run(tmp_path / "run", registry=discover())["metrics"] == results["test"]["metrics"]
    monkeypatch.setenv("MELTR_CACHE", str(tmp_path / "nothing"))
    run = load_run(tmp_path / "run", registry=discover())
    assert run.predict(PredictRequest(tuple(videos[:1]), "what is it?")).rows
