"""Dual encoders of transformers with heads: CLIP (arXiv 2103.00020), SigLIP (2303.15343) and SigLIP 2 (2502.14786)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from meltr.devices import constant
from meltr.video.losses import wide
from meltr_clip.model.pixels import Normalisation, cropped, inside

HEADS = ("sigmoid", "matching", "masked_text")
"""Losses with parameters of their own."""

PER_PASS = 64
"""Texts per pass where no gradient is needed."""


class MaskedTextHead(nn.Module):
    """Predicts tokens from the states of a text and the vector of its clip, with the text tower's own embeddings.

    Args:
        width: D of the states.
        shared: P of the vectors.
        vocabulary: V, the number of tokens.
    """

    def __init__(self, width: int, shared: int, vocabulary: int) -> None:
        super().__init__()
        self.text, self.video = nn.Linear(width, width), nn.Linear(shared, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, states: Tensor, video: Tensor, embeddings: Tensor) -> Tensor:
        """Return logits (B, K, V).

        Args:
            states: (B, K, D).
            video: (B, P).
            embeddings: (V, D).
        """
        joint = self.text(states) + self.video(video)[:, None]
        logits: Tensor = self.norm(F.gelu(joint)) @ embeddings.T + self.bias
        return logits


class Dual(nn.Module):
    """A text tower and a tower for pictures; the vector of a clip is the mean of the vectors of its frames.

    This is the parameter-free variant of CLIP4Clip (Luo et al., arXiv 2104.08860): frames are normalised, averaged, and
    normalised again. An image is a clip of one frame.

    Args:
        towers: A CLIPModel, SiglipModel or Siglip2Model.
        images: Its image processor.
        heads: Losses whose heads are needed, from `HEADS`.
        class_ids: Token ids of the texts of the classes, (C, L); None: no classes.
    """

    class_ids: Tensor | None

    def __init__(self, towers: Any, images: Any, *, heads: Sequence[str] = (), class_ids: Tensor | None = None) -> None:
        super().__init__()
        self.towers = towers
        width, shared = towers.config.text_config.hidden_size, _shared(towers)
        self.normalised = Normalisation(images, patches=towers.config.model_type == "siglip2")
        self.pair = nn.Parameter(torch.tensor([math.log(10), -10.0])) if self._lacks_bias(heads) else None
        self.matching = _two_layers(3 * shared, shared) if "matching" in heads else None
        words = towers.config.text_config.vocab_size
        self.masked_text = MaskedTextHead(width, shared, words) if "masked_text" in heads else None
        self.register_buffer("class_ids", class_ids, persistent=False)
        self.classes = nn.Parameter(torch.zeros(len(class_ids), shared)) if class_ids is not None else None

    def _lacks_bias(self, heads: Sequence[str]) -> bool:
        return "sigmoid" in heads and not hasattr(self.towers, "logit_bias")

    @property
    def embeddings(self) -> Tensor:
        """Embeddings of the tokens, (V, D)."""
        weight: Tensor = self.towers.text_model.embeddings.token_embedding.weight
        return weight

    def pictures(self, video: Tensor) -> Tensor:
        """Return clips for the tower, (B, T, 3, S, S) or patches (B, T, N, p p 3), from bytes."""
        normalised: Tensor = self.normalised(video, self.embeddings.dtype)
        return normalised

    def clips(self, pictures: Tensor, shapes: Tensor | None = None, *, box: Tensor | None = None) -> Tensor:
        """Return unit vectors of clips, (B, P).

        Args:
            pictures: The result of `pictures`.
            shapes: Rows and columns of patches, (B, T, 2), for patches.
            box: Only a part of each clip counts: side, top, left, (B, 3). Pictures are cropped; of patches, the tower
                sees those inside.
        """
        count, more = pictures.shape[1], {}
        if shapes is None:
            pictures = pictures if box is None else cropped(pictures, box)
        else:
            whole = constant(((1.0, 0.0, 0.0),), shapes.device) if box is None else box
            kept = inside(shapes, whole, pictures.shape[2])
            more = {"pixel_attention_mask": kept.flatten(0, 1).int(), "spatial_shapes": shapes.flatten(0, 1)}
        found = self.towers.vision_model(pixel_values=pictures.flatten(0, 1), **more).pooler_output
        if hasattr(self.towers, "visual_projection"):
            found = self.towers.visual_projection(found)
        return unit(unit(found).unflatten(0, (-1, count)).mean(1))

    def states(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the states of texts (B, L, D) and their unit vectors (B, P), from token ids (B, L)."""
        found = self.towers.text_model(input_ids=ids)
        vectors = found.pooler_output
        if hasattr(self.towers, "text_projection"):
            vectors = self.towers.text_projection(vectors)
        return found.last_hidden_state, unit(vectors)

    def texts(self, ids: Tensor) -> Tensor:
        """Return the unit vectors of texts, (B, P), from token ids (B, L)."""
        return self.states(ids)[1]

    def scores(self, texts: Tensor, clips: Tensor) -> Tensor:
        """Return the model's logits of texts and clips: cosines times its scale, plus its bias if it has one.

        Args:
            texts: (M, P).
            clips: (N, P).
        """
        bias = getattr(self.towers, "logit_bias", None)
        scores = cosines(texts, clips) * wide(self.towers.logit_scale).exp()
        return scores if bias is None else scores + wide(bias)

    def pair_scores(self, texts: Tensor, clips: Tensor) -> Tensor:
        """Return the logits of the sigmoid loss, (M, N): the model's, or with a scale and a bias of their own.

        CLIP has no bias: its own pair starts from 10 and -10, as SigLIP's (arXiv 2303.15343, section 3.2).
        """
        if self.pair is None:
            return self.scores(texts, clips)
        scale, bias = wide(self.pair).unbind()
        return cosines(texts, clips) * scale.exp() + bias

    def class_logits(self, video: Tensor, shapes: Tensor | None = None) -> Tensor:
        """Return the logits of the classes, (B, C).

        Args:
            video: Bytes (B, T, 3, S, S), or patches (B, T, N, p p 3).
            shapes: Rows and columns of patches, (B, T, 2), for patches.
        """
        return self.class_scores(self.clips(self.pictures(video), shapes))

    def class_scores(self, clips: Tensor) -> Tensor:
        """Return the logits of the classes from vectors of clips, (B, C)."""
        assert self.classes is not None, "the model has no classes"
        return self.scores(wide(self.classes), clips).T

    @torch.no_grad()
    def start_classes(self) -> None:
        """Let the head of the classes be the vectors of their texts: without training it classifies zero-shot."""
        assert self.classes is not None
        assert self.class_ids is not None
        mode = self.training
        self.eval()
        found = [self.texts(part) for part in self.class_ids.split(PER_PASS)]
        self.classes.copy_(torch.cat(found))
        self.train(mode)


def unit(vectors: Tensor) -> Tensor:
    """Return vectors of length 1, in float32 at least."""
    return F.normalize(wide(vectors), dim=-1)


def cosines(texts: Tensor, clips: Tensor) -> Tensor:
    """Return the products of unit vectors, (M, N), in float32 at least: a scale of 100 magnifies rounding."""
    with torch.autocast(texts.device.type, enabled=False):
        return texts @ clips.T


def _shared(towers: Any) -> int:
    """Return P, the width of the vectors that texts and pictures share."""
    config = towers.config
    if config.model_type == "clip":
        return int(config.projection_dim)
    return int(config.vision_config.hidden_size)


def _two_layers(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, 1))
