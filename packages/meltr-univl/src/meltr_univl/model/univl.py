"""The UniVL model (Luo et al., arXiv 2002.06353): encoders of text and video, a cross encoder, a decoder, and heads.

Modules are named as in the published checkpoint. A table that the checkpoint stores several times exists once here. The
word table also serves the decoder and both word heads, the text positions the decoder, and the frame projection the
frame head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from meltr_univl.model.config import EPS, ModelConfig
from meltr_univl.model.decoder import Decoder, Kept
from meltr_univl.model.encoders import CrossEncoder, TextEncoder, VisualEncoder
from meltr_univl.model.layers import PredictionHead

PARTS = ("align", "cmlm", "cmfm", "decoder", "score", "poolers")
"""Optional parts of a model besides its text and video encoders. All but the last need the cross encoder, which is then
built too. ``poolers`` are those of the two encoders: they are unused, but the published file has them."""


class FrameNorm(nn.Module):
    """LayerNorm of feature vectors, in float32 or higher precision: its epsilon, 1e-12, is zero in half precision."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.visual_norm2d = nn.LayerNorm(width, eps=EPS)

    def forward(self, video: Tensor) -> Tensor:
        """Map features (..., D) to normalised features. A row of zeros becomes the bias."""
        with torch.autocast(video.device.type, enabled=False):
            return cast(Tensor, self.visual_norm2d(video.to(self.visual_norm2d.weight.dtype)))


class Univl(nn.Module):
    """The encoders, with the optional parts that are needed.

    Args:
        config: Sizes.
        parts: Parts to build, from `PARTS`.

    Raises:
        ValueError: If a part is unknown.
    """

    def __init__(self, config: ModelConfig, *, parts: Sequence[str] = PARTS[:4]) -> None:
        super().__init__()
        unknown = [name for name in parts if name not in PARTS]
        if unknown:
            raise ValueError(f"unknown parts {unknown}: choose from {PARTS}")
        width, self.config = config.width, config
        poolers = "poolers" in parts
        matching = "align" in parts or "score" in parts
        self.bert = TextEncoder(config, pooler=poolers)
        self.visual = VisualEncoder(config, pooler=poolers)
        self.cross = CrossEncoder(config, pooler=matching) if set(parts) - {"poolers"} else None
        self.decoder = Decoder(config) if "decoder" in parts else None
        self.cls = PredictionHead(config, config.vocabulary) if "cmlm" in parts else None
        self.cls_visual = PredictionHead(config, config.video_dim) if "cmfm" in parts else None
        self.similarity_dense = nn.Linear(width, 1) if "align" in parts else None
        self.score_dense = nn.Linear(width, 1) if "score" in parts else None
        self.normalize_video = FrameNorm(config.video_dim)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw initial weights: normal with deviation ``config.spread`` for matrices and tables, 0 for biases."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                module.weight.normal_(std=self.config.spread)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()

    def blocks(self) -> list[nn.Module]:
        """Return the layers of all encoders and of the decoder."""
        encoders = [self.bert.encoder, self.visual.encoder, *([] if self.cross is None else [self.cross.encoder])]
        decoder = [] if self.decoder is None else list(self.decoder.layers)
        return [layer for encoder in encoders for layer in encoder.layer] + decoder

    @property
    def words(self) -> Tensor:
        """The word table, (V, H)."""
        return self.bert.embeddings.word_embeddings.weight

    @property
    def positions(self) -> Tensor:
        """The position table of texts and captions."""
        return self.bert.embeddings.position_embeddings.weight

    def normalise(self, video: Tensor) -> Tensor:
        """Return normalised features (B, F, D): the input of the visual encoder and the targets of masked frames."""
        return cast(Tensor, self.normalize_video(video))

    def encode_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the states (B, W, H) of texts (B, W) with mask (B, W)."""
        return cast(Tensor, self.bert(ids, mask))

    def encode_video(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Return the states (B, F, H) of normalised frames (B, F, D) with mask (B, F)."""
        return cast(Tensor, self.visual(frames, mask))

    def join(self, text: Tensor, text_mask: Tensor, video: Tensor, video_mask: Tensor) -> Tensor:
        """Return the joint states of texts and their videos, (B, W + F, H), text first."""
        assert self.cross is not None, "the model has no cross encoder"
        return cast(Tensor, self.cross(text, video, torch.cat([text_mask, video_mask], 1)))

    def pooled(self, states: Tensor) -> Tensor:
        """Return the pooled state at position 0 of the cross encoder, (B, H)."""
        assert self.cross is not None, "the model has no cross encoder"
        assert self.cross.pooler is not None, "the model has no head that reads a pooled state"
        return cast(Tensor, self.cross.pooler(states))

    def matching(self, pooled: Tensor) -> Tensor:
        """Return the unbounded score of how well text and video match: (B, H) to (B,)."""
        assert self.similarity_dense is not None, "the model has no part `align`"
        return cast(Tensor, self.similarity_dense(pooled))[..., 0]

    def score(self, pooled: Tensor) -> Tensor:
        """Return the sentiment of clips: (B, H) to (B,)."""
        assert self.score_dense is not None, "the model has no part `score`"
        return cast(Tensor, self.score_dense(pooled))[..., 0]

    def predict_words(self, states: Tensor) -> Tensor:
        """Return the logits of masked words: states of text positions (..., H) to (..., V)."""
        assert self.cls is not None, "the model has no part `cmlm`"
        return cast(Tensor, self.cls(states, self.words))

    def predict_frames(self, states: Tensor) -> Tensor:
        """Return predicted features: states of frame positions (..., H) to (..., D)."""
        assert self.cls_visual is not None, "the model has no part `cmfm`"
        return cast(Tensor, self.cls_visual(states, self.visual.embeddings.word_embeddings.weight.T))

    def decode(self, ids: Tensor, mask: Tensor, memory: Tensor, memory_mask: Tensor) -> Tensor:
        """Return the logits of every next token, (B, L, V); see `meltr_univl.model.decoder.Decoder.forward`."""
        assert self.decoder is not None, "the model has no part `decoder`"
        return cast(Tensor, self.decoder(ids, mask, memory, memory_mask, self.words, self.positions))

    def start_decoding(self, memory: Tensor, memory_mask: Tensor) -> Kept:
        """Return the cache for the first call of `decode_step`."""
        assert self.decoder is not None, "the model has no part `decoder`"
        return self.decoder.start(memory, memory_mask)

    def decode_step(self, ids: Tensor, kept: Kept) -> tuple[Tensor, Kept]:
        """Decode one more token of every hypothesis (B, K); see `meltr_univl.model.decoder.Decoder.step`."""
        assert self.decoder is not None, "the model has no part `decoder`"
        return self.decoder.step(ids, kept, self.words, self.positions)
