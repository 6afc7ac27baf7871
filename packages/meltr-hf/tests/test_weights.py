"""Loading: what is missing is refused or said, and nothing but tensors is read."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, BertForSequenceClassification, RobertaConfig

from meltr.errors import UserError
from meltr_hf.model.kind import fitting_lengths, has_dropout, kind_of
from meltr_hf.model.lora import add_adapters
from meltr_hf.options import HfOptions
from meltr_hf.weights.pretrained import load_config, load_model, load_tokenizer, new_model

Folder = Callable[[str], Path]


@pytest.fixture
def changed(folder_of: Folder, tmp_path: Path) -> Callable[..., Path]:
    """Return a maker of a copy of a folder whose weights went through a function."""

    def make(model_type: str, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
        folder = tmp_path / model_type
        shutil.copytree(folder_of(model_type), folder)
        save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
        return folder

    return make


def load(folder: Path, *, with_words: bool = True) -> Any:
    config = load_config(str(folder))
    kind = kind_of(config, "text-classification", "m")
    return load_model(str(folder), config, kind, with_words=with_words)


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "gpt2", "t5"])
def test_a_whole_model_is_loaded_whole(model_type: str, folder_of: Folder) -> None:
    model, report = load(folder_of(model_type))
    assert report.complete
    assert not report.unexpected
    theirs = AutoModel.from_pretrained(folder_of(model_type)).state_dict()
    ours = {name: value for name, value in model.base_model.state_dict().items() if "pooler" not in name}
    common = ours.keys() & theirs.keys()
    assert len(common) > 10
    assert all(torch.equal(ours[name], theirs[name]) for name in common)


def test_a_head_that_is_missing_is_said_and_a_body_is_refused(changed: Callable[..., Path], folder_of: Folder) -> None:
    folder = changed("bert", lambda state: {name: value for name, value in state.items() if "cls." not in name})
    _, report = load(folder)
    assert any(name.startswith("cls.") for name in report.missing)
    assert "stay as initialised (cls)" in str(report)
    assert load(folder, with_words=False)[1].complete
    shutil.rmtree(folder)
    folder = changed(
        "bert", lambda state: {name: value for name, value in state.items() if "layer.1.output" not in name}
    )
    with pytest.raises(UserError, match=r"weights of its body are missing: bert\.encoder\.layer\.1\.output"):
        load(folder)


def test_a_head_for_another_task_is_skipped_and_said(tmp_path: Path, folder_of: Folder) -> None:
    config = load_config(str(folder_of("bert")))
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    _, report = load(tmp_path, with_words=False)
    assert {"classifier.weight", "classifier.bias"} <= set(report.ignored)


def test_another_shape_is_refused(changed: Callable[..., Path]) -> None:
    name = "bert.embeddings.position_embeddings.weight"
    folder = changed("bert", lambda state: state | {name: torch.zeros(9, 16)})
    with pytest.raises(UserError, match="the weights of model"):
        load(folder)


def test_a_pickle_with_code_is_refused_and_none_of_it_runs(folder_of: Folder, tmp_path: Path) -> None:
    folder, mark = tmp_path / "evil", tmp_path / "mark"
    shutil.copytree(folder_of("bert"), folder)
    (folder / "model.safetensors").unlink()

    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(mark),)

    torch.save({"bert.embeddings.word_embeddings.weight": Evil()}, folder / "pytorch_model.bin", pickle_module=pickle)
    with pytest.raises(UserError, match="could run code"):
        load(folder)
    assert not mark.exists()


def test_code_of_a_model_is_refused(folder_of: Folder, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    shutil.copytree(folder_of("bert"), folder)
    content = json.loads((folder / "config.json").read_text())
    content |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "mine.py").write_text("raise SystemExit('ran')\n")
    with pytest.raises(UserError, match="configuration of model"):
        load_config(str(folder))


@pytest.mark.parametrize("loader", [load_config, load_tokenizer])
def test_what_does_not_exist_is_named(loader: Callable[[str], Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent") as refused:
        loader(str(tmp_path / "absent"))
    assert "Without a network" in str(refused.value.hint)


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "t5"])
def test_a_folder_without_a_tokenizer_is_refused(model_type: str, folder_of: Folder, tmp_path: Path) -> None:
    """From the configuration alone transformers makes a tokenizer to which every word is unknown."""
    folder = tmp_path / model_type
    shutil.copytree(folder_of(model_type), folder, ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(UserError, match="has no tokenizer: no words, only") as refused:
        load_tokenizer(str(folder))
    assert "tokenizer.json" in str(refused.value.hint)


def test_lengths_fit_the_positions_of_the_model(folder_of: Folder) -> None:
    """As many tokens as `fitting_lengths` allows go through the model, and not one more."""
    for name, task in (("bert", "text-classification"), ("gpt2", "text-classification"), ("gpt2", "text-to-text")):
        config, tokenizer = load_config(str(folder_of(name))), load_tokenizer(str(folder_of(name)))
        kind = kind_of(config, task, name)
        found = fitting_lengths(config, kind, task, tokenizer, text_length=4096, target_length=20)
        assert found == {"text_length": 64 if task == "text-classification" else 43, "target_length": 20}
        model = new_model(config, kind, with_words=False)
        model(torch.zeros(1, 64, dtype=torch.long))
        with pytest.raises((RuntimeError, IndexError)):
            model(torch.zeros(1, 65, dtype=torch.long))
    with pytest.raises(UserError, match="target_length=61 leaves no room for a text: the model has 64 positions"):
        fitting_lengths(config, kind, task, tokenizer, text_length=10, target_length=61)
    config = load_config(str(folder_of("t5")))
    found = fitting_lengths(config, "encoder-decoder", "text-to-text", tokenizer, text_length=400, target_length=300)
    assert found == {"text_length": 400, "target_length": 300}


def test_positions_that_are_counted_after_the_padding() -> None:
    """A RoBERTa with 24 positions, of which the first two are not for tokens."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = RobertaConfig(vocab_size=9, max_position_embeddings=24, pad_token_id=1, **sizes)
    unlimited = SimpleNamespace(model_max_length=10**30)
    found = fitting_lengths(config, "encoder", "text-classification", unlimited, text_length=99, target_length=9)
    assert found == {"text_length": 22, "target_length": 9}
    model = new_model(config, "encoder", with_words=False)
    model(torch.full((1, 22), 5))
    with pytest.raises((RuntimeError, IndexError)):
        model(torch.full((1, 23), 5))


def test_kinds(folder_of: Folder) -> None:
    kinds = {name: load_config(str(folder_of(name))) for name in ("bert", "distilbert", "gpt2", "t5")}
    found = {name: kind_of(config, "text-classification", name) for name, config in kinds.items()}
    assert found == {"bert": "encoder", "distilbert": "encoder", "gpt2": "decoder", "t5": "encoder-decoder"}
    assert all(has_dropout(config) for config in kinds.values())
    kinds["gpt2"].resid_pdrop = kinds["gpt2"].embd_pdrop = kinds["gpt2"].attn_pdrop = 0.0
    assert not has_dropout(kinds["gpt2"])  # that of its own summary does not count
    with pytest.raises(UserError, match="is an encoder, which cannot write texts"):
        kind_of(kinds["bert"], "text-to-text", "m")
    with pytest.raises(UserError, match="'vit', which is not a language model"):
        kind_of(SimpleNamespace(model_type="vit"), "text-classification", "m")


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "t5"])
def test_a_new_body_is_the_same_with_a_head_for_words_and_without(model_type: str, folder_of: Folder) -> None:
    config = load_config(str(folder_of(model_type)))
    kind = kind_of(config, "text-classification", "m")
    states = []
    for with_words in (True, False):
        torch.manual_seed(5)
        states.append(new_model(config, kind, with_words=with_words).base_model.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_adapters_leave_the_function_and_freeze_the_rest(folder_of: Folder) -> None:
    pytest.importorskip("peft")
    model = load(folder_of("bert"))[0].eval()
    ids = torch.tensor([[2, 7, 9, 3]])
    before = model(input_ids=ids).logits
    add_adapters(model, HfOptions(peft="lora", lora_rank=2), new=["cls.predictions.bias"])
    torch.testing.assert_close(model(input_ids=ids).logits, before)  # B of B A starts at 0
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert "cls.predictions.bias" in trained
    assert all("lora_" in name for name in trained - {"cls.predictions.bias"})
    # Query and value of both layers, each with A of (2, 16) and B of (16, 2).
    assert sum(value.numel() for name, value in model.named_parameters() if "lora_" in name) == 2 * 2 * 2 * 32
    with pytest.raises(UserError, match="cannot place adapters") as refused:
        add_adapters(load(folder_of("bert"))[0], HfOptions(peft="lora", lora_modules=("nothing",)), new=[])
    assert "lora_modules" in str(refused.value.hint)


def test_adapters_need_peft(monkeypatch: pytest.MonkeyPatch, folder_of: Folder) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match="needs the library peft") as refused:
        add_adapters(load(folder_of("bert"))[0], HfOptions(peft="lora"), new=[])
    assert "meltr-hf[peft]" in str(refused.value.hint)
