from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from golden_set import GoldenSet
from meltr.metrics.classification import IGNORED
from meltr_fixtures import Sample
from meltr_violet.losses.tasks import Batch
from meltr_violet.model.config import TINY, ModelConfig
from meltr_violet.model.violet import Violet
from meltr_violet.weights.official import from_official
from places import golden_sets, published_vocabulary
from small_runs import MakeContext, MakeSpec, context_maker, spec_maker


class Goldens(GoldenSet):
    """One golden set of VIOLET."""

    def converted(self, key: str, tensor: Tensor) -> Tensor:
        if key.startswith("ans_"):  # the official code ignores -1
            return torch.where(tensor == -1, IGNORED, tensor)
        return super().converted(key, tensor)

    @cached_property
    def model_config(self) -> ModelConfig:
        swin, bert, video = self.config["swin"], self.config["bert"], self.config["enc_img"]
        assert swin["patch_stride"] == [1, *swin["patch_size"][1:]]
        return ModelConfig(
            swin_width=swin["embed_dim"],
            swin_depths=tuple(swin["depths"]),
            swin_heads=tuple(swin["num_heads"]),
            window=tuple(swin["window_size"]),
            patch=tuple(swin["patch_size"]),
            mlp_ratio=swin["mlp_ratio"],
            pixel_mean=tuple(video["pixel_mean"]),
            pixel_std=tuple(video["pixel_std"]),
            max_frames=video["emb_len_max"],
            positions=video["emb_pos_len"],
            video_eps=video["layer_norm_eps"],
            width=bert["hidden_size"],
            layers=bert["num_hidden_layers"],
            heads=bert["num_attention_heads"],
            feedforward=bert["intermediate_size"],
            vocabulary=bert["vocab_size"],
            text_positions=bert["max_position_embeddings"],
            token_types=bert["type_vocab_size"],
            text_eps=bert["layer_norm_eps"],
            codes=self.config["mvm_codes"],
        ).without_noise()

    def model(self, *, qa: bool = False) -> Violet:
        """The official model of pre-training and retrieval, or with the heads of MELTR's answering models."""
        weights = dict(self.tensors("weights"))
        heads = ("vtm", "mtm", "mvm", "answer", "choice") if qa else ("vtm", "mtm", "mvm")
        if qa:
            weights = {key: value for key, value in weights.items() if not key.startswith("fc.")}
            weights |= self.tensors("weights_qa_heads")
        model = Violet(self.model_config, heads=heads, answers=self.config["size_vocab"], answer_dropout=0.0)
        state = {from_official(key): value for key, value in weights.items() if key != "fc_mtm.predictions.bias"}
        missing, unexpected = model.to(self.dtype).load_state_dict(state, strict=False)
        assert not unexpected
        assert all(key.endswith("relative_position_index") for key in missing)
        return model.train()

    def clip(self, name: str = "video_u8") -> Tensor:
        return self.tensors("inputs")[name].to(self.dtype) / 255

    def batch(self, rows: Any = slice(None), answer: str | None = None) -> Batch:
        inputs = self.tensors("inputs")
        answers = None if answer is None else inputs[answer][rows]
        return Batch(self.clip()[rows], inputs["txt"][rows], answers, inputs["vq"][rows])

    def choices(self) -> Batch:
        inputs = self.tensors("inputs")
        return Batch(self.clip("mc_video_u8"), inputs["mc_txt"], inputs["mc_ans"], inputs["mc_vq"])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folders = golden_sets("violet")
    if "golden" in metafunc.fixturenames:
        pairs = [(folder, dtype) for folder in folders for dtype in (torch.float32, torch.float64)]
        names = [f"{folder.name}-{str(dtype).removeprefix('torch.')}" for folder, dtype in pairs]
        metafunc.parametrize("golden", [Goldens(*pair) for pair in pairs], ids=names)
    if "golden_files" in metafunc.fixturenames:
        metafunc.parametrize("golden_files", [Goldens(f) for f in folders], ids=[folder.name for folder in folders])


@pytest.fixture
def vocabulary_file() -> Path:
    return published_vocabulary()


@pytest.fixture
def tiny_batch() -> Callable[..., Batch]:
    """Return a maker of random batches for the tiny model: 64 pixels, 2 frames, 8 tokens."""

    def make(size: int = 3, *, choices: int = 0, seed: int = 0, answers: int = 5) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        rows = (size, choices, 8) if choices else (size, 8)
        ids = torch.randint(104, TINY.vocabulary, rows, generator=generator)
        ids[..., 0], ids[..., 5], ids[..., 6:] = 101, 102, 0
        return Batch(
            torch.rand(size, 2, 3, 96, 96, generator=generator),
            ids,
            torch.randint(0, choices or answers, (size,), generator=generator),
            torch.randint(0, TINY.codes, (size, 2, 3, 3), generator=generator),
        )

    return make


SMALL = {
    "options.size": "tiny",
    "options.frames": 2,
    "options.image_size": 64,
    "options.text_length": 16,
    "train.batch_size": 4,
    "train.log_every": 1,
}


@pytest.fixture
def make_spec(sample: Sample) -> MakeSpec:
    """Return a maker of small runs; without `data_root` on a miniature."""
    return spec_maker(sample, "violet", SMALL)


@pytest.fixture
def make_context(make_spec: MakeSpec) -> MakeContext:
    """Return a maker of what core tells the adapter of such a run."""
    return context_maker(make_spec)
