from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from meltr_alpro.losses.tasks import Batch
from meltr_alpro.model.alpro import HEADS, Alpro
from meltr_alpro.model.config import TINY, ModelConfig
from meltr_fixtures import Sample
from small_runs import MakeContext, MakeSpec, context_maker, spec_maker

SMALL = {
    "options.size": "tiny",
    "options.frames": 2,
    "options.image_size": 32,
    "options.text_length": 16,
    "options.sampling": "fixed",
    "options.pem_threshold": 0.0,
    "train.batch_size": 4,
    "train.log_every": 1,
}


@pytest.fixture
def make_spec(sample: Sample) -> MakeSpec:
    """Return a maker of small runs; without `data_root` on a miniature."""
    return spec_maker(sample, "alpro", SMALL)


@pytest.fixture
def make_context(make_spec: MakeSpec) -> MakeContext:
    """Return a maker of what core tells the adapter of such a run."""
    return context_maker(make_spec)


@pytest.fixture
def config() -> ModelConfig:
    """Return sizes of a model that is small even for tests, with 3 x 3 patches, dropout and stochastic depth."""
    return replace(TINY, width=32, image_size=48, frames=2, vocabulary=300, drop_path=0.2, dropout=0.1, spread=0.1)


@pytest.fixture
def make_model(config: ModelConfig) -> Callable[..., Alpro]:
    """Return a maker of models whose temporal part is not zero, as it is at the start of training."""

    def make(sizes: ModelConfig = config, heads: tuple[str, ...] = HEADS) -> Alpro:
        torch.manual_seed(0)
        model = Alpro(sizes, heads=heads, answers=5 if "answer" in heads else 0)
        for block in model.visual_encoder.blocks:
            torch.nn.init.normal_(block.temporal_fc.weight, std=0.1)
        return model

    return make


@pytest.fixture
def batch(config: ModelConfig) -> Batch:
    """Return four clips with texts of different lengths."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(104, 300, (4, 8), generator=generator)
    ids[:, 0], ids[:2, 7], ids[2:, 5], ids[2:, 6:] = 101, 102, 102, 0
    side = config.image_size
    video = torch.randint(0, 256, (4, config.frames, 3, side, side), generator=generator, dtype=torch.uint8)
    return Batch(video, ids, torch.tensor([3, 1, -100, 0]))
