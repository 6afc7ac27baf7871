"""Runs on real files with a model by its folder; what cannot be right is refused, with what would be."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from meltr.context import PredictRequest
from meltr.engine.built_run import build_run
from meltr.engine.predicting import load_run
from meltr.engine.run import execute
from meltr.errors import UserError
from meltr.plugins import discover
from meltr.settings import resolve
from meltr.texts.quiet import quiet
from meltr_clip.options import ClipOptions
from meltr_clip.weights.parts import read_parts
from meltr_clip.weights.pretrained import pretrained_towers


@pytest.fixture(scope="module")
def registry():
    return discover()


@pytest.fixture
def spec(registry, photos):
    def make(task="action", **settings):
        flags = {"device": "cpu", "data_root": photos, "train.batch_size": 4, "train.max_steps": 1, "train.epochs": 1}
        named = {key if key in ("losses", "primary") else f"options.{key}": value for key, value in settings.items()}
        choice = {"backbone": "clip", "task": task, "dataset": "manifest"}
        return resolve(registry, **choice, preset="none", flags=flags | named)

    return make


@pytest.fixture(scope="module")
def trained(registry, folder, photos, tmp_path_factory):
    """A run on images from a model's folder, which is gone afterwards."""
    base = tmp_path_factory.mktemp("trained")
    shutil.copytree(folder("clip"), base / "model")
    flags = {"data_root": photos, "device": "cpu", "options.model": str(base / "model"), "options.prompt": "a {} dog"}
    flags |= {"train.batch_size": 4, "train.max_steps": 2, "train.epochs": 2, "train.lr": 1e-3}
    spec = resolve(registry, backbone="clip", task="action", dataset="manifest", preset="none", flags=flags)
    results = execute(spec, run_dir=base / "run", registry=registry)
    shutil.rmtree(base / "model")
    return base / "run", results


def test_the_run_says_what_was_loaded_and_dropped(trained):
    path, results = trained
    log = (path / "log.txt").read_text(encoding="utf-8")
    assert "tensors loaded" in log
    assert "without the loss reconstruction: a clip model has no decoder of tubes" in log
    assert "stay as initialised (pair)" in log
    assert results["losses"] == ["label", "contrastive", "sigmoid", "consistency"]


def test_a_trained_run_needs_no_other_file(trained, photos, registry):
    files = tuple(photos / f"{number}.png" for number in (6, 7))
    answer = load_run(trained[0], registry=registry).predict(PredictRequest(media=files, top=1))
    assert [Path(row["image"]) for row in answer.rows] == list(files)
    assert {row["label"] for row in answer.rows} <= {"red", "blue"}


def test_transformers_can_load_the_towers_of_a_run(trained, tmp_path):
    """What docs/clip.md shows: the folder `model` of a run with the weights of a checkpoint."""
    path, _ = trained
    weights = load_file(path / "checkpoints" / "best" / "backbone.safetensors")
    towers = {name.removeprefix("towers."): value for name, value in weights.items() if name.startswith("towers.")}
    shutil.copytree(path / "model", tmp_path / "export")
    save_file(towers, tmp_path / "export" / "model.safetensors", metadata={"format": "pt"})
    with quiet():
        _, found = transformers.CLIPModel.from_pretrained(tmp_path / "export", output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]


def test_images_are_clips_of_one_frame_and_classes_start_as_their_texts(spec, folder, registry):
    built = build_run(spec(model=str(folder("siglip2")), prompt="the {}."), registry)
    assert next(iter(built.data.train.batches(0)))["video"].shape[:2] == (4, 1)
    model = built.model
    ids = built.data.validation.encoder.tokenizer.encode(["the blue.", "the red."])
    with torch.no_grad():
        torch.testing.assert_close(model.classes, model.texts(ids))


def test_captions_of_one_image_share_a_group(spec, folder, registry):
    built = build_run(spec("retrieval", model=str(folder("clip"))), registry)
    encoder, items = built.data.validation.encoder, built.data.validation.items
    groups = [int(encoder.example(item, caption)["group"]) for item in items for caption in item.captions]
    assert groups[::2] == groups[1::2]
    assert len(set(groups)) == len(items)


def test_weights_of_another_run_go_on_top(spec, folder, registry, trained, tmp_path):
    weights = trained[0] / "checkpoints" / "best" / "backbone.safetensors"
    built = build_run(spec(model=str(folder("clip")), weights=weights), registry)
    state, found = load_file(weights), built.model.state_dict()
    assert all(torch.equal(found[name], state[name]) for name in found)
    save_file({"vision_model.x": torch.zeros(1), "text_model.x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="looks like a CLIP or SigLIP of transformers"):
        build_run(spec(model=str(folder("clip")), weights=tmp_path / "other.safetensors"), registry)


@pytest.mark.parametrize(
    ("task", "settings", "family", "said"),
    [
        ("action", {"losses": ["label", "reconstruction"]}, "clip", "'reconstruction'.*no decoder"),
        ("action", {"losses": ["label", "sigmoid"]}, "videomae", "'sigmoid'.*no tower for texts"),
        ("action", {"primary": "contrastive"}, "videomae", "'contrastive'.*no tower"),
        ("retrieval", {}, "videomae", "no tower for texts"),
        ("action", {"frames": 3}, "videomae", "frames=3: a tube of VideoMAE has 2 frames"),
        ("retrieval", {"text_length": 8}, "siglip", "text_length=8: siglip reads the vector"),
        ("retrieval", {"text_length": 80}, "clip", "text_length=80 is more than the 12 positions"),
    ],
)
def test_what_a_model_cannot_do_is_refused(spec, folder, registry, task, settings, family, said):
    with pytest.raises(UserError, match=said) as error:
        build_run(spec(task, model=str(folder(family)), **settings), registry)
    if "losses" in settings:
        assert "Valid choices: label, " in error.value.hint


@pytest.mark.parametrize("settings", [{"prompt": "a video"}, {"image_size": 32, "model": "x"}, {"pairs_per_pass": 3}])
def test_settings_that_do_not_fit_are_refused(spec, settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        spec(**settings)


def test_folders_that_are_no_such_model_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match="cannot be loaded as a model of transformers"):
        read_parts(tmp_path, ClipOptions())
    whole = folder("clip")
    shutil.copytree(whole, tmp_path / "bert")
    config = json.loads((tmp_path / "bert" / "config.json").read_text())
    (tmp_path / "bert" / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    with pytest.raises(UserError, match="model of type 'bert'") as error:
        read_parts(tmp_path / "bert", ClipOptions())
    assert "clip, siglip, siglip2, videomae" in error.value.hint
    shutil.copytree(whole, tmp_path / "size")
    images = json.loads((tmp_path / "size" / "preprocessor_config.json").read_text())
    images |= {"crop_size": {"height": 24, "width": 24}}
    (tmp_path / "size" / "preprocessor_config.json").write_text(json.dumps(images))
    with pytest.raises(UserError, match="pictures of 24 x 24 pixels, the model reads 16 x 16"):
        read_parts(tmp_path / "size", ClipOptions())


@pytest.mark.parametrize("family", ["clip", "siglip2"])
def test_a_folder_without_a_tokenizer_is_refused(folder, tmp_path, family):
    """From the configuration alone transformers makes a tokenizer to which every word is unknown."""
    shutil.copytree(folder(family), tmp_path / family, ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(UserError, match="has no tokenizer: no words, only") as error:
        read_parts(tmp_path / family, ClipOptions())
    assert "tokenizer.json" in error.value.hint


def test_the_loader_says_what_is_missing_and_unused(folder, tmp_path):
    shutil.copytree(folder("clip"), tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    state = load_file(file)
    del state["logit_scale"]
    save_file(state | {"more.weight": torch.zeros(2)}, file, metadata={"format": "pt"})
    parts = read_parts(tmp_path / "model", ClipOptions())
    _, report = pretrained_towers(tmp_path / "model", parts, attention="fused")
    assert report.missing == ("logit_scale",)
    assert report.unexpected == ("more.weight",)
    del state["text_model.final_layer_norm.weight"]
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 weights .*text_model\.final_layer_norm\.weight"):
        pretrained_towers(tmp_path / "model", parts, attention="fused")
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(UserError, match="cannot be loaded"):
        pretrained_towers(tmp_path / "model", replace(parts), attention="fused")
