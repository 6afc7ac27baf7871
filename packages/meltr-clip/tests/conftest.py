"""Small models, made and saved by transformers as a user has them on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from meltr.files import write_lines
from meltr.texts.quiet import quiet
from meltr.video import Item, Labels
from meltr_clip.encoder import ClipEncoder, Texts, shaped
from meltr_clip.options import ClipOptions
from meltr_clip.weights.parts import Parts, read_parts

WORDS = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "video", "of", "red", "blue", "green", "dog", "cat"),
    *("runs", "sleeps", ".", "the", "big", "small"),
)
LENGTH, SIDE, PATCH, FRAMES = 12, 16, 8, 4


def tokenizer() -> Any:
    return transformers.BertTokenizerFast(vocab={word: number for number, word in enumerate(WORDS)})


def make(family: str) -> tuple[Any, Any, Any]:
    """Return model, image processor and tokenizer; CLIP's processor resizes and crops as the published ones do."""
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": len(WORDS), "max_position_embeddings": LENGTH, "eos_token_id": 3, "pad_token_id": 0}
    vision = {**sizes, "image_size": SIDE, "patch_size": PATCH}
    square = {"height": SIDE, "width": SIDE}
    if family == "clip":
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
        images = transformers.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=square)
        return transformers.CLIPModel(config), images, tokenizer()
    if family == "siglip":
        config = transformers.SiglipConfig(text_config=text, vision_config=vision)
        return transformers.SiglipModel(config), transformers.SiglipImageProcessor(size=square), tokenizer()
    if family == "siglip2":
        config = transformers.Siglip2Config(
            text_config=text, vision_config={**sizes, "num_patches": 9, "patch_size": PATCH}
        )
        images = transformers.Siglip2ImageProcessor(patch_size=PATCH, max_num_patches=9)
        return transformers.Siglip2Model(config), images, tokenizer()
    decoder = {f"decoder_{name}": 8 if name == "hidden_size" else value for name, value in sizes.items()}
    config = transformers.VideoMAEConfig(
        **sizes, **decoder, image_size=SIDE, patch_size=PATCH, num_frames=FRAMES, tubelet_size=2
    )
    images = transformers.VideoMAEImageProcessor(size={"shortest_edge": SIDE}, crop_size=square)
    return transformers.VideoMAEForPreTraining(config), images, None


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from a family to the folder of a saved model."""
    base = tmp_path_factory.mktemp("models")

    def saved(family: str) -> Path:
        if not (base / family).is_dir():
            with quiet():
                for part in make(family):
                    if part is not None:
                        part.save_pretrained(base / family)
        return base / family

    return saved


class Files:
    """A source of shaped frames, from arrays in memory."""

    def __init__(self, videos: dict[str, np.ndarray], parts: Parts) -> None:
        self.videos, self.parts = videos, parts

    def frames(self, key: str) -> np.ndarray:
        return shaped(self.videos[key], self.parts)


@pytest.fixture(scope="session")
def videos() -> dict[str, np.ndarray]:
    """Return three videos of four frames, (4, 30, 44, 3)."""
    draw = np.random.default_rng(0)
    return {str(number): draw.integers(0, 256, (FRAMES, 30, 44, 3), dtype=np.uint8) for number in range(3)}


@pytest.fixture
def encoded(videos: dict[str, np.ndarray]) -> Callable[..., tuple[Parts, dict[str, torch.Tensor]]]:
    """Return a function that reads a folder's parts and encodes the first frames of the videos."""

    def columns(path: Path, count: int = FRAMES) -> tuple[Parts, dict[str, torch.Tensor]]:
        parts = read_parts(path, ClipOptions())
        source = Files({key: video[:count] for key, video in videos.items()}, parts)
        encoder = ClipEncoder(Texts(parts.tokenizer, parts.length), Labels("action", {}), source, parts)
        rows = [encoder.video(Item(key, key)) for key in videos]
        return parts, {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    return columns


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a manifest of eight images of two colours, with captions and a label."""
    root = tmp_path_factory.mktemp("photos")
    lines = []
    for number in range(8):
        colour = ("red", "blue")[number % 2]
        Image.new("RGB", (40, 24), colour).save(root / f"{number}.png")
        split = "test" if number > 5 else "validation" if number > 3 else "train"
        captions = [f"a {colour} dog .", f"the {colour} cat runs ."]
        lines.append({"split": split, "image": f"{number}.png", "captions": captions, "label": colour})
    write_lines(root / "manifest.jsonl", lines)
    return root
