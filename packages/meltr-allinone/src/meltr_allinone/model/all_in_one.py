"""The All-in-one model (Wang et al., arXiv 2203.07303): one ViT over the text and the patches of each frame.

Parts of timm (blocks) and transformers (text embedding, masked text head) hold the weights, with the names of the
official checkpoints. A sequence is one frame with a copy of the whole text. Frames interact only in token rolling and
in the mean at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import cast

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertEmbeddings, BertPredictionHeadTransform

from meltr.video.adapter.limits import check_heads
from meltr.video.text.bert import Pooler
from meltr.video.text.wordpiece import PAD
from meltr_allinone.model.config import ModelConfig
from meltr_allinone.model.rolling import roll_tokens

HEADS = ("mlm", "itm", "rank", "contrastive", "answer")
"""Heads for masked text, matching, ranking scores, the two projections of the dual encoder, and answer classes."""


def bert_config(config: ModelConfig) -> BertConfig:
    """Return the sizes of the text embedding as a configuration of transformers."""
    return BertConfig(
        vocab_size=config.vocabulary,
        hidden_size=config.width,
        max_position_embeddings=config.text_length,
        type_vocab_size=2,
        layer_norm_eps=1e-12,
        hidden_act="gelu",
        hidden_dropout_prob=config.dropout,
        pad_token_id=PAD,
    )


class FrameTransformer(nn.Module):
    """The embedding tables and blocks of the ViT.

    Args:
        config: Sizes.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, config.patch, config.patch)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.dist_token = nn.Parameter(torch.empty(1, 1, width)) if config.distilled else None
        self.pos_embed = nn.Parameter(torch.empty(1, config.frame_tokens, width))
        self.temporal_embed = nn.Parameter(torch.zeros(1, config.frames, width))
        rates = torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(
            Block(
                width,
                config.heads,
                config.mlp_ratio,
                qkv_bias=True,
                proj_drop=config.dropout,
                drop_path=rate,
                norm_layer=partial(nn.LayerNorm, eps=1e-6),  # type: ignore[arg-type]
            )
            for rate in rates
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        for block in self.blocks:
            block.attn.fused_attn = config.attention == "fused"  # type: ignore[union-attr]


class MatchHead(nn.Module):
    """Two logits of matching. Class 1: text and video belong together."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, 2)

    def forward(self, pooled: Tensor) -> Tensor:
        """Map (B, D) to (B, 2)."""
        return cast(Tensor, self.fc(pooled))


class MaskedTextHead(nn.Module):
    """BERT's masked language modelling head. Its decoder is not tied to the word embeddings."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.transform = BertPredictionHeadTransform(bert_config(config))
        self.decoder = nn.Linear(config.width, config.vocabulary, bias=False)
        self.bias = nn.Parameter(torch.zeros(config.vocabulary))

    def forward(self, features: Tensor) -> Tensor:
        """Map (..., D) to logits (..., V)."""
        return cast(Tensor, self.decoder(self.transform(features))) + self.bias


class AllInOne(nn.Module):
    """The model with the heads that are needed.

    Args:
        config: Sizes.
        heads: Heads to build, from `HEADS`.
        answers: Classes of the head ``answer``.

    Raises:
        ValueError: If a head is unknown, or ``answer`` is requested without classes.
    """

    def __init__(self, config: ModelConfig, *, heads: Sequence[str] = ("mlm", "itm"), answers: int = 0) -> None:
        super().__init__()
        check_heads(heads, HEADS, answers)
        width, self.config = config.width, config
        self.text_embeddings = BertEmbeddings(bert_config(config))
        self.token_type_embeddings = nn.Embedding(2, width)
        self.transformer = FrameTransformer(config)
        self.pooler = Pooler(width)
        self.video_dropout = nn.Dropout(config.dropout)
        self.mlm_score = MaskedTextHead(config) if "mlm" in heads else None
        self.itm_score = MatchHead(width) if "itm" in heads else None
        self.rank_output = nn.Linear(width, 1) if "rank" in heads else None
        self.txt_proj = nn.Linear(width, config.shared) if "contrastive" in heads else None
        self.vid_proj = nn.Linear(width, config.shared) if "contrastive" in heads else None
        self.vqa_classifier = _answer_head(config, answers) if "answer" in heads else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw initial weights: normal with deviation ``config.spread``, truncated in the ViT; biases and times 0."""
        for name, module in self.named_modules():
            draw = nn.init.trunc_normal_ if name.startswith("transformer.") else nn.init.normal_
            if isinstance(module, (nn.Linear, nn.Embedding)):
                draw(module.weight, std=self.config.spread)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
        for token in (self.transformer.cls_token, self.transformer.dist_token, self.transformer.pos_embed):
            if token is not None:
                nn.init.trunc_normal_(token, std=self.config.spread)
        self.rank_like_matching()

    @torch.no_grad()
    def rank_like_matching(self) -> None:
        """Set the ranking score to the logit of a match, if the model has both heads."""
        if self.rank_output is not None and self.itm_score is not None:
            self.rank_output.weight.copy_(self.itm_score.fc.weight[1:])
            self.rank_output.bias.copy_(self.itm_score.fc.bias[1:])

    def blocks(self) -> list[nn.Module]:
        """Return the blocks, from first to last."""
        return list(self.transformer.blocks)

    def embed_text(self, ids: Tensor) -> Tensor:
        """Embed texts (B, L): word, position and inner type, LayerNorm, then the outer type 0."""
        return cast(Tensor, self.text_embeddings(ids)) + self.token_type_embeddings.weight[0]

    def embed_video(self, video: Tensor) -> Tensor:
        """Return the tokens of each frame in raster order, with position and time, before dropout and outer type.

        Args:
            video: Normalised frames, (B, T, 3, S, S); T is at most the number of rows of the temporal embedding.

        Returns:
            (B, T, l, D).

        Raises:
            ValueError: If there are more frames, or frames of another size.
        """
        vit, config = self.transformer, self.config
        batch, frames, _, *side = video.shape
        if frames > config.frames or side != [config.image_size] * 2:
            raise ValueError(
                f"video with {frames} frames of {side}: expected at most {config.frames} of {config.image_size} pixels"
            )
        patches = cast(nn.Conv2d, vit.patch_embed.proj)(video.flatten(0, 1)).flatten(2).transpose(1, 2)
        patches = (patches + vit.pos_embed[:, config.first_patch :]).view(batch, frames, config.patches, -1)
        if vit.dist_token is None:
            patches = patches + vit.temporal_embed[:, :frames, None]
        tokens: list[Tensor] = [vit.cls_token] if vit.dist_token is None else [vit.cls_token, vit.dist_token]
        heads = torch.cat(tokens, 1) + vit.pos_embed[:, : config.first_patch]
        return torch.cat([heads.expand(batch, frames, -1, -1), patches], 2)

    def order_patches(self, video: Tensor, order: Tensor | None) -> Tensor:
        """Reorder the patches of each frame. Patches keep their position embeddings.

        Args:
            video: (B, T, l, D), from `embed_video`.
            order: Slot -> raster patch, (B T, N), one row per frame; None: raster order.
        """
        if order is None:
            return video
        first = self.config.first_patch
        places = order.view(*video.shape[:2], -1, 1).expand(-1, -1, -1, video.shape[-1])
        return torch.cat([video[:, :, :first], video[:, :, first:].gather(2, places)], 2)

    def join(self, text: Tensor, ids: Tensor, video: Tensor, order: Tensor | None = None) -> Tensor:
        """Return the features of texts with their videos, (B, L + l, D), averaged over frames.

        Args:
            text: (B, L, D), from `embed_text`.
            ids: (B, L); padding is masked out as keys.
            video: (B, T, l, D), from `embed_video`.
            order: Order of patches, see `order_patches`. It decides which patches token rolling exchanges.
        """
        frames, length = video.shape[1], text.shape[1]
        seen = self._typed(self.order_patches(video, order))
        texts = text[:, None].expand(-1, frames, -1, -1)
        mask = nn.functional.pad(ids != PAD, (0, seen.shape[2]), value=True).repeat_interleave(frames, 0)
        for block in self.transformer.blocks:
            seen = roll_tokens(seen, self.config.rolled)
            states = block(torch.cat([texts, seen], 2).flatten(0, 1), attn_mask=self._keys(mask))
            states = states.view(len(ids), frames, *states.shape[1:])
            texts, seen = states[:, :, :length], states[:, :, length:]
        return cast(Tensor, self.transformer.norm(torch.cat([texts, seen], 2))).mean(1)

    def encode_text(self, ids: Tensor) -> Tensor:
        """Return the features of texts alone, (B, L, D).

        In training, the original averages one copy per frame, each with its own noise. This does the same if there is
        noise.
        """
        copies = self.config.frames if self.training and (self.config.dropout or self.config.drop_path) else 1
        mask = self._keys((ids != PAD).repeat_interleave(copies, 0))
        return self._alone(self.embed_text(ids).repeat_interleave(copies, 0), mask, copies)

    def encode_video(self, video: Tensor) -> Tensor:
        """Return the features of videos alone, (B, l, D), averaged over frames. `video` is as in `embed_video`."""
        return self._alone(self._typed(self.embed_video(video)).flatten(0, 1), None, video.shape[1])

    def text_vectors(self, ids: Tensor) -> Tensor:
        """Return the vectors of texts (B, L) in the shared space, (B, P), not normalised."""
        assert self.txt_proj is not None, "the model has no head `contrastive`"
        return cast(Tensor, self.txt_proj(self.encode_text(ids)[:, 0]))

    def video_vectors(self, video: Tensor) -> Tensor:
        """Return the vectors of videos (B, T, 3, S, S) in the shared space, (B, P), not normalised."""
        assert self.vid_proj is not None, "the model has no head `contrastive`"
        return cast(Tensor, self.vid_proj(self.encode_video(video)[:, 0]))

    def _alone(self, tokens: Tensor, mask: Tensor | None, copies: int) -> Tensor:
        for block in self.transformer.blocks:
            tokens = block(tokens, attn_mask=mask)
        features = cast(Tensor, self.transformer.norm(tokens))
        return features.view(-1, copies, *features.shape[1:]).mean(1)

    def _typed(self, video: Tensor) -> Tensor:
        return cast(Tensor, self.video_dropout(video)) + self.token_type_embeddings.weight[1]

    def _keys(self, visible: Tensor) -> Tensor:
        """Return the mask of keys for the attention, (B, 1, 1, S): boolean, or a value to add to the scores."""
        keys = visible[:, None, None]
        if self.config.attention == "fused":
            return keys
        zero = torch.zeros((), dtype=self.token_type_embeddings.weight.dtype, device=keys.device)
        return torch.where(keys, zero, float("-inf"))


def _answer_head(config: ModelConfig, answers: int) -> nn.Sequential:
    """Return the official head of open-ended answers. Layers 1, 2 and 4 have parameters."""
    half = config.width // 2
    return nn.Sequential(
        nn.Dropout(config.dropout),
        nn.Linear(config.width, half),
        nn.LayerNorm(half),
        nn.GELU(),
        nn.Linear(half, answers),
    )
