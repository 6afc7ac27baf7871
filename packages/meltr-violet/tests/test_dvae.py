from __future__ import annotations

import sys
import types
import warnings
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from meltr import UserError
from meltr_violet.model.dvae import CodeEncoder, load_code_encoder

WIDTH, CODES = 16, 40


class Pickled(nn.Module):
    """A module of the published file: classes live in modules that do not exist when the file is read."""


@pytest.fixture
def dall_e(monkeypatch):
    """Modules dall_e.encoder and dall_e.utils with classes of the published names, as far as pickling sees them."""
    classes = {}
    for module, names in (
        ("dall_e", ()),
        ("dall_e.encoder", ("Encoder", "EncoderBlock")),
        ("dall_e.utils", ("Conv2d",)),
    ):
        made = types.ModuleType(module)
        for name in names:
            classes[name] = type(name, (Pickled,), {"__module__": module, "__qualname__": name})
            setattr(made, name, classes[name])
        monkeypatch.setitem(sys.modules, module, made)
    return classes


def convolution(dall_e, into: int, out: int, side: int) -> nn.Module:
    made = dall_e["Conv2d"]()
    made.n_in, made.n_out, made.kw, made.use_float16, made.device = into, out, side, True, torch.device("cpu")
    made.w = nn.Parameter(torch.randn(out, into, side, side) / (into * side**2) ** 0.5, requires_grad=False)
    made.b = nn.Parameter(0.1 * torch.randn(out), requires_grad=False)
    return made


def block(dall_e, into: int, out: int) -> nn.Module:
    made = dall_e["EncoderBlock"]()
    made.n_in, made.n_out, made.n_layers = into, out, 8
    made.post_gain = 1 / 64
    made.id_path = nn.Identity() if into == out else convolution(dall_e, into, out, 1)
    sides = ((into, out // 4, 3), (out // 4, out // 4, 3), (out // 4, out // 4, 3), (out // 4, out, 1))
    members = []
    for number, sizes in enumerate(sides, 1):
        members += [(f"relu_{number}", nn.ReLU()), (f"conv_{number}", convolution(dall_e, *sizes))]
    made.res_path = nn.Sequential(OrderedDict(members))
    return made


def published(dall_e) -> nn.Module:
    torch.manual_seed(0)
    encoder = dall_e["Encoder"]()
    encoder.n_hid, encoder.device = WIDTH, torch.device("cpu")
    layers, into = [("input", convolution(dall_e, 3, WIDTH, 7))], WIDTH
    for group in range(1, 5):
        out = WIDTH * 2 ** (group - 1)
        members = [("block_1", block(dall_e, into, out)), ("block_2", block(dall_e, out, out))]
        pool = [("pool", nn.MaxPool2d(kernel_size=2))] if group < 4 else []
        layers.append((f"group_{group}", nn.Sequential(OrderedDict(members + pool))))
        into = out
    output = [("relu", nn.ReLU()), ("conv", convolution(dall_e, into, CODES, 1))]
    encoder.blocks = nn.Sequential(OrderedDict([*layers, ("output", nn.Sequential(OrderedDict(output)))]))
    return encoder


def by_hand(state: dict, pictures: torch.Tensor) -> torch.Tensor:
    """The encoder with plain functions, from the names of the published parameters."""

    def conv(x, name):
        w = state[f"{name}.w"]
        return F.conv2d(x, w, state[f"{name}.b"], padding=w.shape[-1] // 2)

    x = conv(0.8 * pictures + 0.1, "blocks.input")
    for group in range(1, 5):
        for number in (1, 2):
            name = f"blocks.group_{group}.block_{number}"
            branch = x
            for layer in range(1, 5):
                branch = conv(branch.relu(), f"{name}.res_path.conv_{layer}")
            x = (conv(x, f"{name}.id_path") if f"{name}.id_path.w" in state else x) + branch / 64
        x = F.max_pool2d(x, 2) if group < 4 else x
    return conv(x.relu(), "blocks.output.conv")


def test_a_pickled_encoder_is_read_without_its_classes(dall_e, tmp_path, monkeypatch):
    module, file = published(dall_e), tmp_path / "encoder.pkl"
    torch.save(module, file)
    state, pictures = module.state_dict(), torch.rand(2, 3, 56, 40)
    for name in ("dall_e", "dall_e.encoder", "dall_e.utils"):
        monkeypatch.delitem(sys.modules, name)
    encoder = load_code_encoder(file)
    assert not any(name.startswith("dall_e") for name in sys.modules)
    assert len(encoder.state_dict()) == len(state)
    expected = by_hand(state, pictures)
    torch.testing.assert_close(encoder(pictures), expected, atol=1e-5, rtol=1e-5)
    codes = encoder.codes(pictures)
    assert codes.shape == (2, 7, 5)
    assert codes.dtype == torch.int64
    assert torch.equal(codes, expected.argmax(1))
    assert torch.equal(encoder.codes((pictures * 255).byte()), encoder.codes((pictures * 255).byte().float() / 255))


def test_tensors_alone_will_do(dall_e, tmp_path):
    state = published(dall_e).state_dict()
    torch.save(state, tmp_path / "encoder.pt")
    save_file(state, tmp_path / "encoder.safetensors")
    pictures = torch.rand(1, 3, 56, 56)
    one, other = (load_code_encoder(tmp_path / name) for name in ("encoder.pt", "encoder.safetensors"))
    assert torch.equal(one(pictures), other(pictures))


def test_published_sizes():
    with torch.device("meta"):
        state = CodeEncoder().state_dict()
    assert tuple(state["blocks.input.weight"].shape) == (256, 3, 7, 7)
    assert tuple(state["blocks.group_4.block_1.id_path.weight"].shape) == (2048, 1024, 1, 1)
    assert tuple(state["blocks.group_4.block_2.res_path.conv_2.weight"].shape) == (512, 512, 3, 3)
    assert tuple(state["blocks.output.conv.weight"].shape) == (8192, 2048, 1, 1)


class Bomb:
    def __reduce__(self):
        return exec, ("import builtins; builtins.meltr_bomb = True",)


def test_a_file_that_would_run_code_is_refused(dall_e, tmp_path):
    import builtins

    module = published(dall_e)
    module.surprise = Bomb()
    torch.save(module, tmp_path / "encoder.pkl")
    with pytest.raises(UserError, match="asks for exec"):
        load_code_encoder(tmp_path / "encoder.pkl")
    assert not hasattr(builtins, "meltr_bomb")


def test_other_files_are_refused(dall_e, tmp_path):
    torch.save({"a.w": torch.zeros(2)}, tmp_path / "other.pkl")
    torch.save(published(dall_e).blocks.group_1, tmp_path / "part.pkl")
    (tmp_path / "text.pkl").write_text("hello")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch looks for the source of the made-up classes
        torch.save(published(dall_e), tmp_path / "old.pkl", _use_new_zipfile_serialization=False)
    for name in ("absent.pkl", "other.pkl", "part.pkl", "text.pkl", "old.pkl"):
        with pytest.raises(UserError) as caught:
            load_code_encoder(tmp_path / name)
        assert name in caught.value.message
        assert "encoder.pkl" in caught.value.hint
        assert "weights_only" not in caught.value.message
