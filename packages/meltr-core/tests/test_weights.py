"""Published weights: files that are read without running code from them, and reports of what became of every key."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from meltr import UserError
from meltr.weights import FileKind, compare, copy_into, looks_like, read_weights

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(2)}


@pytest.fixture
def training_library(monkeypatch: pytest.MonkeyPatch) -> type:
    """A class of a library that is there when a checkpoint is written, and gone when it is read."""
    module = ModuleType("trainer_of_someone.callbacks")
    saved = type("Saved", (), {"__module__": module.__name__})
    module.Saved = saved
    parent = ModuleType("trainer_of_someone")
    monkeypatch.setitem(sys.modules, parent.__name__, parent)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return saved


def write(file: Path, content: object, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.save(content, file)
    for name in ("trainer_of_someone", "trainer_of_someone.callbacks"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return file


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_state_dict_wherever_it_lies(tmp_path, wrapper, prefix):
    state = {prefix + name: value for name, value in STATE.items()}
    torch.save(state if wrapper is None else {wrapper: state, "epoch": 3}, tmp_path / "file.pt")
    assert same(read_weights(tmp_path / "file.pt"), STATE)


def test_formats_of_long_ago_and_of_others(tmp_path):
    save_file(STATE, tmp_path / "file.safetensors")
    torch.save(STATE, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert same(read_weights(tmp_path / "file.safetensors"), STATE)
    assert same(read_weights(tmp_path / "old.pth"), STATE)


def test_classes_that_a_checkpoint_names_are_stood_in_for(tmp_path, training_library, monkeypatch):
    state = training_library()
    state.best = torch.tensor(0.5)
    content = {"callbacks": {training_library: state}, "state_dict": STATE}
    file = write(tmp_path / "last.ckpt", content, monkeypatch)
    admitted = set(torch.serialization.get_safe_globals())
    assert same(read_weights(file, stand_ins=["trainer_of_someone."]), STATE)
    assert "trainer_of_someone" not in sys.modules
    assert set(torch.serialization.get_safe_globals()) == admitted
    for others in ([], ["trainer_of_someone.models."]):
        with pytest.raises(UserError, match=r"asks for trainer_of_someone\.callbacks\.Saved") as caught:
            read_weights(file, stand_ins=others)
        assert "None of its code was run" in caught.value.hint


def test_a_function_that_would_run_is_refused_and_not_run(tmp_path):
    victim = tmp_path / "victim"

    class Evil:
        def __reduce__(self):
            return Path.touch, (victim,)

    torch.save({"state_dict": STATE, "more": Evil()}, tmp_path / "evil.pt")
    torch.save({"state_dict": STATE, "more": Evil()}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("evil.pt", "old.pt"):
        with pytest.raises(UserError) as caught:
            read_weights(tmp_path / name, stand_ins=["trainer_of_someone."])
        assert name in caught.value.message
    assert not victim.exists()


def test_what_is_no_file_of_weights(tmp_path):
    torch.save(STATE, tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:500])
    (tmp_path / "text.pt").write_text("version https://git-lfs")
    (tmp_path / "text.safetensors").write_text("version https://git-lfs")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"a": 1}, tmp_path / "numbers.pt")
    names = {"absent.pt": "There is no", "list.pt": "no state dict", "numbers.pt": "no state dict"}
    for name in ("absent.pt", "cut.pt", "text.pt", "text.safetensors", "list.pt", "numbers.pt"):
        with pytest.raises(UserError, match=names.get(name, "cannot be read")) as caught:
            read_weights(tmp_path / name)
        assert name in caught.value.message


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("<!DOCTYPE html><title>Quota exceeded</title>", "it is a web page"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0123\n", "a pointer of Git LFS"),
        ("", "it is empty"),
        ("no pickle at all", "it is not a pickle of tensors"),
    ],
)
def test_what_a_file_is_instead_of_weights_is_said_without_unsafe_advice(tmp_path, content, what):
    (tmp_path / "a.pt").write_text(content)
    with pytest.raises(UserError, match=what) as caught:
        read_weights(tmp_path / "a.pt")
    assert "weights_only" not in str(caught.value)
    assert "likely succeed" not in str(caught.value)


def test_every_key_has_a_fate():
    model = nn.ModuleDict({"a": nn.Linear(3, 2), "c": nn.Linear(2, 2)})
    given = {"a.weight": torch.ones(2, 3), "a.bias": torch.ones(5), "d": torch.ones(1)}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = compare(
        model,
        given,
        source="file.pt",
        unexpected=["who.knows"],
        ignored={"index": "a constant"},
        adapted={"a.weight": "the first 2 of 4 rows", "d": "not told, for it is not loaded"},
    )
    assert same(dict(model.state_dict()), before)
    assert report.loaded == ("a.weight",)
    assert report.missing == ("c.weight", "c.bias")
    assert report.reshaped == {"a.bias": ((5,), (2,))}
    assert report.ignored == {"index": "a constant", "d": "the model has no such part"}
    assert report.adapted == {"a.weight": "the first 2 of 4 rows"}
    assert not report.complete
    for part in ("1 tensors loaded", "2 stay", "[5] -> [2]", "who.knows", "a constant", "a.weight: the first 2 of 4"):
        assert part in str(report)
    copy_into(model, given, report)
    after = model.state_dict()
    assert [name for name in after if not torch.equal(after[name], before[name])] == ["a.weight"]
    assert torch.equal(after["a.weight"], given["a.weight"])


def test_what_a_state_looks_like():
    known = [(("a.", "b"), "a model of both"), (("a.",), "one with a alone")]
    assert looks_like(STATE, known) == "a model of both"
    assert looks_like({"a.weight": STATE["b"]}, known) == "one with a alone"
    assert "c.weight" in looks_like({"c.weight": STATE["b"]}, known)


def test_a_kind_of_file_says_what_does_not_fit(tmp_path):
    kind = FileKind("a checkpoint of a line", "Give line.pt.", "Use another size.", ((("conv.",), "a filter"),))
    line = torch.nn.Linear(3, 2)
    wide = {"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}
    with pytest.raises(UserError) as caught:
        kind.check_shapes(compare(line, wide, source="wide.pt"), size="4 wide")
    assert caught.value.message == (
        "wide.pt is a checkpoint of a line of another size (4 wide): 1 tensors have another shape (first: weight is "
        "[2, 4], the model's [2, 3])."
    )
    assert caught.value.hint == "Use another size."
    kind.check_shapes(compare(line, wide, source="wide.pt"), ("bias",))
    part = {"weight": torch.zeros(2, 3), "conv.x": torch.zeros(1)}
    report = compare(line, part, source="part.pt")
    with pytest.raises(UserError, match=r"part\.pt is not a checkpoint of a line: it lacks 1 tensors") as caught:
        kind.check_missing(report, part, called="trunk")
    assert "of the trunk (first: bias). It looks like a filter." in caught.value.message
    kind.check_missing(report, part, spared=("bias",))
    with pytest.raises(UserError, match="1 tensors are missing or have another shape"):
        kind.check_whole(report, part, ("bias",))
    assert report.about(("weight",)).complete
