"""A video backbone as a third party writes one: two linear towers over mean colours and words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import meltr
from meltr.context import RunContext
from meltr.specs import BackboneInfo, BackboneTask
from meltr.video import Encoder, Item, Labels, Source, VideoAdapter
from meltr.video.options import FrameOptions
from meltr.video.text.wordpiece import Tokenizer

DATASETS = ("msvd", "tgif-action", "msrvtt-7k", "kinetics400", "manifest")


class Options(FrameOptions):
    """Settings.

    Args:
        size: The only one.
    """

    size: Literal["tiny"] = "tiny"
    text_length: int = 16
    frames: int = 2
    image_size: int = 16
    eval_batch_size: int = 4


class Towers(nn.Module):
    """Vectors of videos and texts, and logits of answers from their product."""

    def __init__(self, words: int, answers: int) -> None:
        super().__init__()
        self.of_video, self.of_text = nn.Linear(3 * 16, 8), nn.EmbeddingBag(words, 8)
        self.answer = nn.Linear(8, max(1, answers))

    def video(self, frames: Tensor) -> Tensor:
        """Return vectors (B, 8) of clips (B, T, 4, 4, 3)."""
        return self.of_video(frames.mean(1).flatten(1))

    def text(self, ids: Tensor) -> Tensor:
        """Return vectors (..., 8) of token ids (..., X)."""
        return self.of_text(ids.flatten(0, -2)).unflatten(0, ids.shape[:-1])


class TowersEncoder(Encoder):
    """Frames cut down to 4 x 4 pixels, and token ids; a question with choices has a row for each."""

    def __init__(self, tokenizer: Tokenizer, labels: Labels, frames: Any) -> None:
        super().__init__(tokenizer, labels)
        self._frames = frames

    def video(self, item: Item, seed: int | None = None) -> dict[str, Tensor]:
        """Return ``frames`` (T, 4, 4, 3)."""
        return {"frames": torch.from_numpy(self._frames.frames(item.media))[:, ::4, ::4] / 255.0}

    def text(self, item: Item, caption: str = "") -> dict[str, Tensor]:
        """Return ``ids``, (X,) or (O, X)."""
        if item.choices:
            return {"ids": self.tokenizer.encode([f"{item.question} {choice}" for choice in item.choices])}
        return {"ids": self.tokenizer.encode([item.question or caption])[0]}


class TowersAdapter(VideoAdapter[Towers]):
    """The hooks, by way of `VideoAdapter`."""

    def encoder(self, source: Source, tokenizer: Tokenizer, labels: Labels, context: RunContext) -> TowersEncoder:
        """Return how an item becomes tensors."""
        return TowersEncoder(tokenizer, labels, source.media)

    def make_model(self, meta: Mapping[str, Any], context: RunContext) -> Towers:
        """Return the model."""
        return Towers(meta["vocabulary"], len(meta.get("answers", ())))

    def losses(self, model: Towers, batch: Mapping[str, Tensor], context: RunContext) -> dict[str, Tensor]:
        """Return the loss of the task, and ``agree``: each clip and its text have nearby vectors."""
        right = torch.arange(len(batch["frames"])) if context.spec.task == "retrieval" else batch["answer"]
        score = self._matrix if context.spec.task == "retrieval" else self.answer_logits
        text = model.text(batch["ids"])
        text = text.mean(1) if text.dim() == 3 else text
        found = {
            "right": F.cross_entropy(score(model, batch, context), right),
            "agree": (model.video(batch["frames"]) - text).square().mean(),
        }
        return {name: found[name] for name in context.losses}

    def _matrix(self, model: Towers, batch: Mapping[str, Tensor], context: RunContext) -> Tensor:
        return model.text(batch["ids"]) @ model.video(batch["frames"]).T

    def answer_logits(self, model: Towers, batch: Mapping[str, Tensor], context: RunContext) -> Tensor:
        """Return logits of answers or choices."""
        video, text = model.video(batch["frames"]), model.text(batch["ids"])
        return (text @ video[:, :, None])[..., 0] if text.dim() == 3 else model.answer(video * text)

    def similarity(
        self, model: Towers, texts: Mapping[str, Tensor], videos: Iterable[Mapping[str, Tensor]], context: RunContext
    ) -> Tensor:
        """Return dot products."""
        return model.text(texts["ids"]) @ torch.cat([model.video(batch["frames"]) for batch in videos]).T

    def scores_pairs_alone(self, context: RunContext) -> bool:
        """Return True: a score is a dot product."""
        return True


@meltr.hookimpl
def register_backbones() -> list[BackboneInfo]:
    """Name the adapter, as text."""
    tasks = tuple(
        BackboneTask(task=task, losses=("right", "agree"), datasets=DATASETS) for task in ("qa", "action", "retrieval")
    )
    adapter, options = f"{__name__}:TowersAdapter", f"{__name__}:Options"
    return [BackboneInfo(name="towers", summary="For tests.", adapter=adapter, tasks=tasks, options=options)]
