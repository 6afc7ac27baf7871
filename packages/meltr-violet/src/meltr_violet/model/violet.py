"""The VIOLET model (Fu et al. 2021): video tokens, text embeddings, one transformer over both, and its heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from meltr.video.adapter.limits import check_heads
from meltr.video.text.wordpiece import PAD
from meltr_violet.model.config import ModelConfig
from meltr_violet.model.heads import ANSWER_DROPOUT, MaskedTextHead, mlp_head
from meltr_violet.model.transformer import CrossEncoder, TextEmbedding
from meltr_violet.model.video import SPREAD, VideoEncoder

HEADS = ("vtm", "mtm", "mvm", "answer", "choice")
"""Heads for matching, masked text, masked video, answer classes, and the score of one choice."""


class Violet(nn.Module):
    """The model with the heads that are needed.

    Args:
        config: Sizes.
        heads: Heads to build, from `HEADS`.
        answers: Classes of the ``answer`` head (open-ended answers, or actions).
        answer_dropout: Dropout of the ``answer`` head.

    Raises:
        ValueError: If a head is unknown, or ``answer`` is requested without classes.
    """

    vtm: nn.Sequential | None
    mtm: MaskedTextHead | None
    mvm: nn.Sequential | None
    answer: nn.Sequential | None
    choice: nn.Sequential | None

    def __init__(
        self,
        config: ModelConfig,
        *,
        heads: Sequence[str] = ("vtm", "mtm", "mvm"),
        answers: int = 0,
        answer_dropout: float = ANSWER_DROPOUT,
    ) -> None:
        super().__init__()
        check_heads(heads, HEADS, answers)
        self.config = config
        self.video = VideoEncoder(config)
        self.text = TextEmbedding(config)
        self.cross = CrossEncoder(config)
        outputs = {"vtm": 1, "mvm": config.codes, "answer": answers, "choice": 1}
        for name in HEADS:
            made: nn.Module | None = None
            if name == "mtm" and name in heads:
                made = MaskedTextHead(config)
            elif name in heads:
                dropout = answer_dropout if name == "answer" else config.dropout
                made = mlp_head(config.width, outputs[name], dropout)
            self.register_module(name, made)
        self._initialise()

    def _initialise(self) -> None:
        """Initialise the BERT parts as BERT does, and the masked text decoder with the word embeddings."""
        parts: list[nn.Module] = [self.text, self.cross, *([] if self.mtm is None else [self.mtm])]
        for module in (module for part in parts for module in part.modules()):
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=SPREAD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            self.text.word_embeddings.weight[PAD].zero_()
            if self.mtm is not None:
                self.mtm.decoder.weight.copy_(self.text.word_embeddings.weight)
        if self.config.start == "scaled":
            self._scale()

    def _scale(self) -> None:
        """Scale linear layers below the heads to keep the deviation of their input, and embeddings to deviation 1."""
        for module in (module for part in (self.video, self.text, self.cross) for module in part.modules()):
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight)
        for parameter in (self.video.emb_cls, self.video.emb_pos, self.video.emb_len):
            nn.init.normal_(parameter)
        if isinstance(self.mvm, nn.Sequential):
            # Most cells have the same code. A small weight lets the bias learn it first; otherwise all states collapse.
            last = self.mvm[-1]
            assert isinstance(last, nn.Linear)
            with torch.no_grad():
                last.weight.mul_(0.01)

    def forward(self, frames: Tensor, ids: Tensor) -> Tensor:
        """Return the states (B, T n + X, D) of clips (B, T, 3, H, W) paired with texts (B, X)."""
        return self.join(self.encode_video(frames), self.embed_text(ids), ids)

    def encode_video(self, frames: Tensor) -> Tensor:
        """Map frames (B, T, 3, H, W), pixels in [0, 1] or bytes, to video tokens (B, T n, D)."""
        tokens: Tensor = self.video(frames)
        return tokens

    def embed_text(self, ids: Tensor) -> Tensor:
        """Map token ids (B, X) to embeddings (B, X, D)."""
        embedded: Tensor = self.text(ids)
        return embedded

    def join(self, video: Tensor, text: Tensor, ids: Tensor) -> Tensor:
        """Run the transformer over pairs of clips and texts.

        Args:
            video: Video tokens (B, T n, D).
            text: Text embeddings (B, X, D).
            ids: Their token ids (B, X). Padding is not attended to.

        Returns:
            States (B, T n + X, D). The text's [CLS] is at index T n.
        """
        states: Tensor = self.cross(torch.cat([video, text.to(video.dtype)], 1), visible(video, ids))
        return states

    def pooled(self, video: Tensor, text: Tensor, ids: Tensor) -> Tensor:
        """Return the state of the text's [CLS] of each pair, (B, D). Takes the arguments of `join`."""
        return self.join(video, text, ids)[:, video.shape[1]]

    def attention_received(self, video: Tensor, text: Tensor, ids: Tensor) -> Tensor:
        """Return the attention that each position receives, (B, T n + X).

        It is averaged over heads and summed over layers and queries, including padded ones. Takes the arguments of
        `join`.
        """
        layers = self.cross.attention(torch.cat([video, text.to(video.dtype)], 1), visible(video, ids))
        total = torch.zeros(())
        for probabilities in layers:
            total = total.to(probabilities) + probabilities.mean(1).sum(1)
        return total

    def blocks(self) -> list[nn.Module]:
        """Return the repeated blocks: Swin's blocks, then the layers of the transformer."""
        return [*self.video.swin.blocks(), *self.cross.layer]

    def compile(self, *arguments: Any, **settings: Any) -> None:
        """Compile the video branch, the text embedding and the transformer, each into a graph of its own.

        The losses call these parts instead of `forward`, because the number of passes differs between losses.
        """
        for part in (self.video, self.text, self.cross):
            part.compile(*arguments, **settings)


def visible(video: Tensor, ids: Tensor) -> Tensor:
    """Return a mask of the positions to attend to, (B, T n + X): all video tokens, and text tokens except padding."""
    return torch.cat([torch.ones(video.shape[:2], dtype=torch.bool, device=ids.device), ids != PAD], 1)
