"""Facts about the published files: keys of the checkpoints, token ids, and the full-size model on made-up weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from meltr.video.text.wordpiece import Tokenizer
from meltr_violet.model.config import BASE
from meltr_violet.model.violet import Violet
from meltr_violet.weights.official import TIED_BIAS, from_official
from meltr_violet.weights.pretrained import official_state

HEADS = {
    "pretrain": (("vtm", "mtm", "mvm"), "fc"),
    "meltr_retrieval": (("vtm", "mtm", "mvm"), "fc"),
    "meltr_open_ended": (("vtm", "mtm", "mvm", "answer"), "fc_vtm"),
    "meltr_multiple_choice": (("vtm", "mtm", "mvm", "choice"), "fc_vtm"),
    "original_multiple_choice": (("choice",), None),
    "original_open_ended": (("answer",), None),
}


def variants(manifest: dict) -> dict[str, dict[str, tuple]]:
    """Name -> key -> (shape, dtype)."""
    base = {key: (tuple(shape), dtype) for key, (shape, dtype) in manifest["pretrain"].items()}
    found = {"pretrain": base}
    for name, delta in manifest["delta"].items():
        added = {key: (tuple(shape), dtype) for key, (shape, dtype) in delta["add"].items()}
        found[name] = {key: value for key, value in base.items() if key not in delta["drop"]} | added
    return found


def answers_in(keys: dict[str, tuple]) -> int:
    return next((keys[key][0][0] for key in ("fc_oe.3.bias", "fc.3.bias") if key in keys), 1)


def test_every_key_of_every_published_model(golden_files):
    for name, keys in variants(golden_files.json("checkpoint_manifest.json")).items():
        heads, vtm = HEADS[name.partition(" ")[0]]
        with torch.device("meta"):
            model = Violet(BASE, heads=heads, answers=answers_in(keys))
        if vtm is not None:  # MELTR's models can also be written back
            written = official_state(model, vtm=vtm)
            assert {key: (tuple(t.shape), str(t.dtype).removeprefix("torch.")) for key, t in written.items()} == keys
        own = model.state_dict()
        names = {key: from_official(key, fc=heads[0]) for key in keys if key != TIED_BIAS}
        assert set(names.values()) == set(own), name
        for key, ours in names.items():
            assert tuple(own[ours].shape) == keys[key][0], key


def test_token_ids(golden_files, vocabulary_file):
    for case in golden_files.json("tokenization.json"):
        found = Tokenizer(vocabulary_file, length=case["max_length"]).encode([case["text"]])
        assert found[0].tolist() == case["ids"], case["text"]


def uniform(count: int, seed: int) -> np.ndarray:
    """The hash of the set's description, all in 64-bit integers."""
    low = np.uint64(2**32 - 1)
    x = (np.arange(count, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(seed * 40503 + 12345)) & low
    x ^= x >> np.uint64(15)
    x = (x * np.uint64(2246822519)) & low
    x ^= x >> np.uint64(13)
    x = (x * np.uint64(3266489917)) & low
    x ^= x >> np.uint64(16)
    return x / 2.0**32


def made_up(key: str, shape: list[int], number: int) -> torch.Tensor:
    count = math.prod(shape)
    v = (2 * uniform(count, number) - 1) * math.sqrt(3)
    if len(shape) == 1:
        v = 1 + 0.1 * v if key.endswith("weight") else 0.05 * v
    elif "emb" in key or "relative_position_bias_table" in key:
        v = 0.3 * v
    else:
        v = v / math.sqrt(count / shape[0])
    return torch.from_numpy(v.astype(np.float32)).reshape(shape)


@pytest.mark.slow
def test_full_size_model_on_made_up_weights(golden_files):
    probe, manifest = (
        golden_files.json("fullsize_probe.json"),
        golden_files.json("checkpoint_manifest.json")["pretrain"],
    )
    keys = sorted(key for key, (_, dtype) in manifest.items() if dtype.startswith("float"))
    assert len(keys) == probe["n_float_keys"]
    model = Violet(BASE.without_noise()).eval()
    state = model.state_dict()
    for number, key in enumerate(keys, 1):
        if key != TIED_BIAS:
            state[from_official(key)].copy_(made_up(key, manifest[key][0], number))
    size = probe_clip_size(probe)
    clip = np.floor(256 * uniform(math.prod(size), 9001)) / 255
    frames, ids = torch.from_numpy(clip.astype(np.float32)).reshape(size), torch.tensor([probe["txt"]])
    with torch.no_grad():
        video, text = model.encode_video(frames), model.embed_text(ids)
        states, length = model.join(video, text, ids), video.shape[1]
        found = {
            "feat_img": video,
            "feat_txt": text,
            "cross": states,
            "vtm_raw": model.vtm(states[:, length]),
            "mtm": model.mtm(states[:, length:]),
            "mvm": model.mvm(states[:, :length]),
        }
    assert found.keys() == probe["outputs"].keys()
    for name, expected in probe["outputs"].items():
        tensor = found[name].double()
        assert list(tensor.shape) == expected["shape"]
        samples = tensor.flatten()[:: expected["stride"]][: len(expected["samples"])]
        torch.testing.assert_close(samples.tolist(), expected["samples"], atol=5e-5, rtol=0)
        numbers = [tensor.mean(), tensor.std() if tensor.numel() > 1 else torch.zeros(()), tensor.abs().max()]
        for value, key in zip(numbers, ("mean", "std", "abs_max"), strict=True):
            assert float(value) == pytest.approx(expected[key], abs=5e-5), (name, key)


def probe_clip_size(probe: dict) -> tuple[int, ...]:
    frames = probe["outputs"]["feat_img"]["shape"][1] // BASE.tokens(1, 224, 224)
    return (1, frames, 3, 224, 224)
