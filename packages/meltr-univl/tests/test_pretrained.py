"""Published weights: every key accounted for, fewer modules, BERT alone, and files that do not fit."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from meltr.errors import UserError
from meltr_univl.model.config import ModelConfig
from meltr_univl.model.univl import PARTS, Univl
from meltr_univl.weights.official import ALIASES, FRAMES, WORDS, from_official, official_state
from meltr_univl.weights.pretrained import load_bert, load_pretrained

CONFIG = ModelConfig(
    width=16,
    heads=2,
    feedforward=32,
    text_layers=1,
    visual_layers=1,
    cross_layers=1,
    decoder_layers=1,
    vocabulary=150,
    text_positions=12,
    visual_positions=8,
    cross_positions=20,
    video_dim=6,
)
PUBLISHED = PARTS[:4] + PARTS[5:]


@pytest.fixture
def official() -> dict[str, Tensor]:
    torch.manual_seed(7)
    return official_state(Univl(CONFIG, parts=PUBLISHED).state_dict())


def saved(state: dict[str, Tensor], path: Path) -> Path:
    torch.save(state, path)
    return path


def test_the_published_file_fills_a_whole_model(official: dict[str, Tensor], tmp_path: Path) -> None:
    model = Univl(CONFIG, parts=PUBLISHED)
    report = load_pretrained(model, saved(official, tmp_path / "univl.pretrained.bin"))
    assert report.complete
    assert not report.unexpected
    assert set(report.ignored) == set(ALIASES)
    for name, value in model.state_dict().items():
        assert torch.equal(value, official[name])
    assert set(official_state(model.state_dict())) == set(official)


def test_the_file_of_a_run_has_every_tensor_once(tmp_path: Path) -> None:
    """Ours, of a run for sentiment: its own head is there, second names are not."""
    torch.manual_seed(9)
    run = Univl(CONFIG, parts=("score", "decoder"))
    save_file(run.state_dict(), tmp_path / "backbone.safetensors")
    model = Univl(CONFIG, parts=("score", "decoder"))
    report = load_pretrained(model, tmp_path / "backbone.safetensors")
    assert report.complete
    assert not report.unexpected
    assert not report.ignored
    for name, value in model.state_dict().items():
        assert torch.equal(value, run.state_dict()[name])
    other = load_pretrained(Univl(CONFIG, parts=("align",)), tmp_path / "backbone.safetensors")
    assert set(other.missing) == {"similarity_dense.weight", "similarity_dense.bias"}
    assert {"score_dense.weight", "score_dense.bias"} <= set(other.ignored)


def test_what_a_task_does_not_need_is_left_out_and_said(official: dict[str, Tensor], tmp_path: Path) -> None:
    model = Univl(CONFIG, parts=("align",))
    report = load_pretrained(model, saved(official, tmp_path / "univl.pretrained.bin"))
    assert report.complete
    assert "decoder.embeddings.LayerNorm.weight" in report.ignored
    assert "the model has no such part" in str(report)


def test_old_names_of_bert_and_safetensors(official: dict[str, Tensor], tmp_path: Path) -> None:
    old = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value.clone()
        for key, value in official.items()
    }
    save_file(old, tmp_path / "old.safetensors")
    model = Univl(CONFIG, parts=PUBLISHED)
    assert load_pretrained(model, tmp_path / "old.safetensors").complete
    assert torch.equal(
        model.state_dict()["bert.embeddings.LayerNorm.weight"], official["bert.embeddings.LayerNorm.weight"]
    )


def test_second_names_that_differ_are_told_and_the_last_wins(official: dict[str, Tensor]) -> None:
    other = official[WORDS] + 1
    ours, told = from_official(official | {"cls.predictions.decoder.weight": other})
    assert torch.equal(ours[WORDS], other)
    assert "differs" in told["cls.predictions.decoder.weight"]
    frames = official[FRAMES] - 1
    ours, told = from_official(official | {"cls_visual.predictions.weight": frames})
    assert torch.equal(ours[FRAMES], frames)


@pytest.mark.parametrize(
    ("kept", "missing"),
    [
        (("bert.", "visual.", "normalize_video.", "cross.", "decoder."), {"cls", "cls_visual", "similarity_dense"}),
        (("bert.", "visual.", "normalize_video."), {"cls", "cls_visual", "similarity_dense", "cross", "decoder"}),
    ],
)
def test_files_of_fine_tuning_have_fewer_modules(
    official: dict[str, Tensor], tmp_path: Path, kept: tuple[str, ...], missing: set[str]
) -> None:
    part = {key: value for key, value in official.items() if key.startswith(kept)}
    model = Univl(CONFIG, parts=PUBLISHED)
    report = load_pretrained(model, saved(part, tmp_path / "part.bin"))
    assert {name.partition(".")[0] for name in report.missing} == missing
    assert torch.equal(model.state_dict()["visual.pooler.dense.bias"], official["visual.pooler.dense.bias"])


def test_unknown_keys_are_named(official: dict[str, Tensor], tmp_path: Path) -> None:
    report = load_pretrained(Univl(CONFIG), saved(official | {"extra.weight": torch.zeros(1)}, tmp_path / "more.bin"))
    assert report.unexpected == ("extra.weight",)


def test_bert_alone(official: dict[str, Tensor], tmp_path: Path) -> None:
    bert = {key: value for key, value in official.items() if key.startswith(("bert.", "cls."))}
    bert |= {"cls.seq_relationship.weight": torch.zeros(2, 16)}
    model = Univl(CONFIG, parts=("cmlm",))
    report = load_bert(model, saved(bert, tmp_path / "pytorch_model.bin"))
    assert not report.missing
    assert "cls.seq_relationship.weight" in report.ignored
    assert torch.equal(model.state_dict()[WORDS], official[WORDS])
    with pytest.raises(UserError, match="is not BERT of this size"):
        load_bert(Univl(replace(CONFIG, text_layers=2)), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"BERT alone \(use it with --set bert=FILE\)"):
        load_pretrained(model, tmp_path / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"video_dim": 7}, "features of 6 numbers, those of this run have 7"),
        ({"vocabulary": 99}, "vocabulary of 150 tokens, the model one of 99"),
        ({"width": 32}, r"another size \(16 wide\)"),
    ],
)
def test_other_sizes_are_refused_and_nothing_is_changed(
    official: dict[str, Tensor], tmp_path: Path, changes: dict[str, int], message: str
) -> None:
    model = Univl(replace(CONFIG, **changes))  # type: ignore[arg-type]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match=message):
        load_pretrained(model, saved(official, tmp_path / "univl.pretrained.bin"))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_other_models_and_broken_files_are_refused(tmp_path: Path) -> None:
    model = Univl(CONFIG)
    violet = {"enc_img.swin.x": torch.zeros(1), "trsfr.layer.0.y": torch.zeros(1)}
    with pytest.raises(UserError, match="a VIOLET checkpoint"):
        load_pretrained(model, saved(violet, tmp_path / "violet.pt"))
    half = {"bert.embeddings.LayerNorm.weight": torch.zeros(16), "visual.x": torch.zeros(1)}
    with pytest.raises(UserError, match="it lacks"):
        load_pretrained(model, saved(half, tmp_path / "half.bin"))
    with pytest.raises(UserError, match="no file of weights"):
        load_pretrained(model, tmp_path / "absent.bin")
    (tmp_path / "text.bin").write_text("not weights")
    with pytest.raises(UserError, match="cannot be read"):
        load_pretrained(model, tmp_path / "text.bin")


def test_a_file_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (eval, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    torch.save({"bert.x": Evil()}, tmp_path / "evil.bin", pickle_module=pickle)
    with pytest.raises(UserError, match="was refused"):
        load_pretrained(Univl(CONFIG), tmp_path / "evil.bin")
    assert not (tmp_path / "ran").exists()
