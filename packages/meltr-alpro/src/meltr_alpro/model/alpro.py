"""The ALPRO model (Li et al., arXiv 2112.09583): two encoders to compare, a fusion of both, heads, a prompter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from meltr.video.adapter.limits import check_heads
from meltr.video.losses import wide
from meltr.video.text.bert import TiedHead
from meltr.video.text.wordpiece import PAD
from meltr_alpro.model.config import ModelConfig
from meltr_alpro.model.text import TextEncoder, bert_config
from meltr_alpro.model.timesformer import TimeSformer

HEADS = ("matching", "mlm", "pem", "answer")
"""Heads for matching, masked text, entities of a region (with the prompter that gives their targets), and answers."""

COOLEST, HOTTEST = 0.001, 0.5
"""Bounds of the temperature."""


class Prompter(nn.Module):
    """The frozen video encoder that says which entities a region of a clip shows.

    It never trains: it has no gradients and stays in eval mode. Its text side is needed only to compute the features of
    the entities, which it holds (see `prompt_features`).

    Args:
        config: Sizes.
    """

    video_prompt_feat: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.visual_encoder = TimeSformer(config)
        self.vision_proj = nn.Linear(config.width, config.shared)
        self.temp = nn.Parameter(torch.tensor(config.temperature))
        self.register_buffer("video_prompt_feat", F.normalize(torch.randn(config.entities, config.shared), dim=1))
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> Prompter:
        """Stay in eval mode, as in the released code."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, crop: Tensor, prompts: Tensor | None = None) -> Tensor:
        """Return how probable each entity is, (B, E): softmax of the similarities, divided by the temperature.

        Args:
            crop: Clips that are black outside a region, (B, T, 3, S, S), bytes or pixels in [0, 1].
            prompts: Features of the entities, (E, P); None: those that it holds.
        """
        prompts = self.video_prompt_feat if prompts is None else prompts
        feature = unit(self.vision_proj(self.visual_encoder(crop)[:, 0]))
        with torch.autocast(feature.device.type, enabled=False):
            return (feature @ wide(prompts).T / wide(self.temp)).softmax(1)


class Alpro(nn.Module):
    """The model with the heads that are needed.

    Args:
        config: Sizes.
        heads: Heads to build, from `HEADS`.
        answers: Classes of the head ``answer``.

    Raises:
        ValueError: If a head is unknown, or ``answer`` is requested without classes.
    """

    def __init__(self, config: ModelConfig, *, heads: Sequence[str] = ("matching", "mlm"), answers: int = 0) -> None:
        super().__init__()
        check_heads(heads, HEADS, answers)
        self.config, width = config, config.width
        self.visual_encoder = TimeSformer(config)
        self.text_encoder = TextEncoder(config)
        self.vision_proj = nn.Linear(width, config.shared)
        self.text_proj = nn.Linear(width, config.shared)
        self.temp = nn.Parameter(torch.tensor(config.temperature))
        self.itm_head = nn.Linear(width, 2) if "matching" in heads else None
        self.mlm_head = TiedHead(bert_config(config), config.vocabulary) if "mlm" in heads else None
        self.mpm_head = _two_layers(width, config.entities) if "pem" in heads else None
        self.classifier = _two_layers(width, answers) if "answer" in heads else None
        self.prompter = Prompter(config) if "pem" in heads else None
        self._reset(self.text_encoder, self.mlm_head)

    @torch.no_grad()
    def _reset(self, *parts: nn.Module | None) -> None:
        """Draw BERT's initial weights."""
        for module in (module for part in parts if part is not None for module in part.modules()):
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=self.config.spread)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                nn.init.zeros_(module.weight[module.padding_idx])

    def blocks(self) -> list[nn.Module]:
        """Return the blocks of the video encoder and the layers of BERT; those of the prompter do not train."""
        return [*self.visual_encoder.blocks, *self.text_encoder.layers]

    def encode_video(self, video: Tensor) -> Tensor:
        """Return the tokens of clips (B, T, 3, S, S), bytes or pixels in [0, 1]: (B, 1 + N, D), cls first."""
        return cast(Tensor, self.visual_encoder(video))

    def encode_text(self, ids: Tensor, seen: Tensor | None = None) -> Tensor:
        """Return the states of texts alone, (B, L, D).

        Args:
            ids: Token ids (B, L).
            seen: True where a token may be attended to, (B, L); None: all but padding.
        """
        return cast(Tensor, self.text_encoder(ids, ids != PAD if seen is None else seen))

    def fuse(self, text: Tensor, video: Tensor, ids: Tensor) -> Tensor:
        """Return the states of texts with videos, (B, L + 1 + N, D), text first.

        Args:
            text: States of the texts alone, (B, L, D).
            video: Video tokens, (B, 1 + N, D).
            ids: Token ids of the unmasked texts, (B, L), which say where the padding is.
        """
        return cast(Tensor, self.text_encoder(ids, ids != PAD, video, text))

    def video_vectors(self, video: Tensor) -> Tensor:
        """Return the unit vectors of videos, (B, P), from their tokens (B, 1 + N, D)."""
        return unit(self.vision_proj(video[:, 0]))

    def text_vectors(self, text: Tensor) -> Tensor:
        """Return the unit vectors of texts, (B, P), from their states (B, L, D)."""
        return unit(self.text_proj(text[:, 0]))

    def temperature(self) -> Tensor:
        """Return the learned temperature, (), within `COOLEST` and `HOTTEST`.

        The released code changes the parameter in place. Here its value is bounded and its gradient is not, so that it
        comes back from outside.
        """
        temp = wide(self.temp)
        return temp + (temp.clamp(COOLEST, HOTTEST) - temp).detach()

    def compile(self, *arguments: Any, **settings: Any) -> None:
        """Compile the encoders, each into a graph of its own; the losses call them instead of `forward`."""
        for part in (self.visual_encoder, self.text_encoder):
            part.compile(*arguments, **settings)


def unit(vectors: Tensor) -> Tensor:
    """Return vectors (B, P) divided by their lengths, in float32 or higher."""
    with torch.autocast(vectors.device.type, enabled=False):
        return F.normalize(wide(vectors), dim=-1)


def similarity(video: Tensor, text: Tensor, temperature: Tensor) -> Tensor:
    """Return S, the cosines of videos (N, P) and texts (M, P) divided by the temperature: (N, M), float32 or higher."""
    with torch.autocast(video.device.type, enabled=False):
        return video @ text.T / temperature


@torch.no_grad()
def prompt_features(model: Alpro, prompts: Iterable[Tensor]) -> Tensor:
    """Return the features of entities, (E, P): the mean of their unit vectors over templates, not of length 1.

    Args:
        model: The model whose texts are compared; the prompter of a checkpoint is one, in eval mode.
        prompts: For each template, the token ids of all E entities in it, (E, L).
    """
    return torch.stack([model.text_vectors(model.encode_text(ids)) for ids in prompts]).mean(0)


def freeze_released(model: Alpro) -> None:
    """Freeze what the released fine-tuning does not train: attention and MLPs of the video encoder.

    Its gradient checkpointing returns no gradients for the weights inside. Norms, ``temporal_fc``, embeddings and the
    patch convolution are trained.
    """
    for name, parameter in model.visual_encoder.blocks.named_parameters():
        if name.split(".")[1] in ("attn", "temporal_attn", "mlp"):
            parameter.requires_grad_(False)


def freeze_unused(model: Alpro, losses: Sequence[str]) -> None:
    """Freeze the parts that none of the losses trains; they may still score and choose negatives."""
    fused = ("answer", "vtm", "mlm", "pem")
    fusion = model.text_encoder.layers[model.config.fusion_from :]
    uses: list[tuple[nn.Module | nn.Parameter | None, tuple[str, ...]]] = [
        (model.itm_head, ("vtm",)),
        *((part, ("vtc",)) for part in (model.vision_proj, model.text_proj, model.temp)),
        *((layer, fused) for layer in fusion),
    ]
    for part, users in uses:
        if part is not None and not any(name in losses for name in users):
            part.requires_grad_(False)


def _two_layers(width: int, outputs: int) -> nn.Sequential:
    """Return a head D -> 2D, ReLU, 2D -> outputs."""
    return nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, outputs))
