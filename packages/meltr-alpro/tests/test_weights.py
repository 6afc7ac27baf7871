"""Published checkpoints: every key is accounted for, tables are adapted, and other files are refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from meltr.errors import UserError
from meltr.weights import compare
from meltr_alpro.model.alpro import Alpro
from meltr_alpro.model.config import BASE
from meltr_alpro.weights.official import fitted, official_state, renamed
from meltr_alpro.weights.pretrained import load_pretrained, why_no_prompter
from places import shared

SHAPES = json.loads((Path(__file__).parent / "goldens" / "checkpoint_shapes.json").read_text())
Shapes = dict[str, list[int]]


def expanded(table: Shapes, prefix: str = "") -> Shapes:
    layers = {name: range(12) if "{}" in name else range(1) for name in table}
    return {prefix + name.replace("{}", str(n)): table[name] for name, numbers in layers.items() for n in numbers}


PRETRAINING = expanded(SHAPES["pretraining"]) | expanded(SHAPES["prompter"], "prompter.")
ANSWERING = expanded(SHAPES["answering"])


def published(shapes: Shapes) -> dict[str, torch.Tensor]:
    """Tensors of these shapes that take no memory."""
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


def test_the_shapes_are_those_of_the_reference() -> None:
    text = shared("reference", "alpro", "checkpoint_manifest.json").read_text()
    whole = [{key: shape for key, (shape, _) in part.items()} for part in json.loads(text).values()]
    assert whole == [PRETRAINING, ANSWERING]


@pytest.mark.parametrize(
    ("shapes", "heads", "count"),
    [(PRETRAINING, ("matching", "mlm", "pem"), 928), (ANSWERING, ("matching", "answer"), 458)],
    ids=["pretraining", "answering"],
)
def test_every_key_of_a_published_checkpoint_is_accounted_for(
    shapes: Shapes, heads: tuple[str, ...], count: int
) -> None:
    state = published(shapes)
    assert len(state) == count
    with torch.device("meta"):
        model = Alpro(BASE, heads=heads, answers=2423)
    ours, ignored, unexpected = renamed(state)
    ours, adapted = fitted(ours, BASE)
    report = compare(model, ours, source="published", unexpected=unexpected, ignored=ignored, adapted=adapted)
    assert report.complete
    assert not report.unexpected
    assert len(report.loaded) + len(report.ignored) == count
    sides = {key for key in state if key.startswith(("prompter.text_", "prompter.itm_head", "prompter.image_"))}
    tied = {key for key in state if key.startswith("text_encoder.cls.predictions.decoder.")}
    rest = {key for key in state if ".head." in key or key.endswith(".position_ids")}
    assert set(report.ignored) == sides | tied | rest
    assert bool(report.adapted) == ("mpm_head.0.weight" in state), "4 frames in pre-training, 16 in answering"
    layout = "pretraining" if "mpm_head.0.weight" in state else "answering"
    written = {key: list(value.shape) for key, value in official_state(model.state_dict(), layout=layout).items()}
    frames = {key: shapes[key] for key in shapes if key.endswith("time_embed")}
    lost = {key for key in shapes if ".head." in key} | sides
    assert written | frames == {key: shape for key, shape in shapes.items() if key not in lost}


def test_frames_and_patches_are_resized_by_nearest_neighbour() -> None:
    times, places = torch.arange(4.0).view(1, 4, 1), torch.arange(17.0).view(1, 17, 1)
    state = {"visual_encoder.time_embed": times, "visual_encoder.pos_embed": places}
    found, adapted = fitted(state, BASE)
    assert found["visual_encoder.time_embed"].flatten().tolist() == [n for n in range(4) for _ in range(4)]
    expected = [0.0, *(1.0 + 16 * n // 196 for n in range(196))]
    assert found["visual_encoder.pos_embed"].flatten().tolist() == expected
    assert list(adapted) == ["visual_encoder.time_embed", "visual_encoder.pos_embed"]
    assert "4 frames" in adapted["visual_encoder.time_embed"]


def stored(model: Alpro, path: Path, **changes: Any) -> Path:
    state = {key: value.clone() for key, value in official_state(model.state_dict()).items()}
    torch.save({"model": {key: value for key, value in (state | changes).items() if value is not None}}, path)
    return path


def test_a_head_of_other_answers_keeps_its_start(make_model: Any, config: Any, tmp_path: Path) -> None:
    path = stored(make_model(), tmp_path / "x.pt", extra=torch.zeros(1))
    torch.manual_seed(1)
    model = Alpro(config, heads=("answer", "pem"), answers=7)
    before = model.classifier[2].weight.clone()
    report = load_pretrained(model, path)
    assert list(report.reshaped) == ["classifier.2.weight", "classifier.2.bias"]
    assert report.unexpected == ("extra",)
    assert torch.equal(model.classifier[2].weight, before)
    assert torch.equal(model.prompter.video_prompt_feat, make_model().prompter.video_prompt_feat)
    assert "1 keys are unknown (extra)" in str(report)
    for name in ("mlm_head.bias", "itm_head.weight", "text_encoder.bert.embeddings.position_ids"):
        assert name in report.ignored


def test_a_decoder_that_is_not_the_word_embeddings_is_told(make_model: Any, tmp_path: Path) -> None:
    key = "text_encoder.cls.predictions.decoder.weight"
    path = stored(make_model(), tmp_path / "x.pt", **{key: torch.zeros(300, 32)})
    assert load_pretrained(make_model(), path).unexpected == (key,)


def test_files_of_others_and_of_other_sizes_are_refused(make_model: Any, config: Any, tmp_path: Path) -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wide = stored(make_model(), tmp_path / "x.pt", **{"visual_encoder.model.norm.weight": torch.zeros(64)})
    with pytest.raises(UserError, match=r"of another size: 1 tensors .*norm.weight is \[64\], the model's \[32\]"):
        load_pretrained(model, wide)
    lacking = stored(make_model(), tmp_path / "y.pt", **{"visual_encoder.model.cls_token": None})
    with pytest.raises(UserError, match=r"lacks 1 tensors of the trunk \(first: visual_encoder.cls_token\)"):
        load_pretrained(model, lacking)
    save_file({"enc_img.x": torch.zeros(1), "trsfr.y": torch.zeros(1)}, tmp_path / "z.safetensors")
    with pytest.raises(UserError, match=r"is not an ALPRO checkpoint: none of its 2 .* a VIOLET checkpoint"):
        load_pretrained(model, tmp_path / "z.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_checkpoint_without_a_prompter(make_model: Any, tmp_path: Path) -> None:
    bare = stored(make_model(heads=("matching",)), tmp_path / "bare.pt")
    assert why_no_prompter(stored(make_model(), tmp_path / "whole.pt")) is None
    assert why_no_prompter(bare) == f"{bare} holds no prompter"
    assert re.search(r"--set weights=alpro_pretrained_ckpt\.pt", why_no_prompter(None) or "")
    with pytest.raises(UserError, match=r"lacks \d+ tensors of the prompter"):
        load_pretrained(make_model(), bare)
