"""The video encoder: TimeSformer with divided attention over time and space (Bertasius et al., arXiv 2102.05095).

timm's attention and MLP hold the weights; the block, as ALPRO uses it, is here.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
from timm.layers.attention import Attention
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from meltr.devices import constant
from meltr_alpro.model.config import ModelConfig


class SpaceTimeBlock(nn.Module):
    """Attention over time for each patch, then over the patches of each frame, then the MLP.

    Stochastic depth drops rows of the tensor at hand: a patch of a clip in time, a frame of a clip in space, a clip in
    the MLP.

    Args:
        config: Sizes.
        drop_path: Probability of dropping a row.
    """

    def __init__(self, config: ModelConfig, drop_path: float) -> None:
        super().__init__()
        width, norm = config.width, partial(nn.LayerNorm, eps=config.video_eps)
        self.patches = config.patches
        self.temporal_norm1, self.norm1, self.norm2 = norm(width), norm(width), norm(width)
        self.temporal_attn = _attention(config)
        self.temporal_fc = nn.Linear(width, width)
        self.attn = _attention(config)
        self.mlp = Mlp(width, int(width * config.mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map a clip's tokens (B, 1 + N T, D) to the same shape: cls, then the patches, all frames of one in a row."""
        batch, _, width = tokens.shape
        cls, patches = tokens[:, :1], tokens[:, 1:].reshape(batch, self.patches, -1, width)
        frames = patches.shape[2]
        rows = patches.flatten(0, 1)
        moved = self.temporal_fc(self.drop_path(self.temporal_attn(self.temporal_norm1(rows))))
        patches = patches + moved.view_as(patches)
        each = torch.cat([cls.expand(-1, frames, -1)[:, :, None], patches.transpose(1, 2)], 2)  # (B, T, 1 + N, D)
        mixed = self.drop_path(self.attn(self.norm1(each.flatten(0, 1)))).view_as(each)
        cls = cls + mixed[:, :, 0].mean(1, keepdim=True)
        patches = patches + mixed[:, :, 1:].transpose(1, 2)
        tokens = torch.cat([cls, patches.flatten(1, 2)], 1)
        return cast(Tensor, tokens + self.drop_path(self.mlp(self.norm2(tokens))))


def _attention(config: ModelConfig) -> Attention:
    made = Attention(config.width, config.heads, qkv_bias=True)
    object.__setattr__(made, "fused_attn", config.attention == "fused")  # final for type checkers
    return made


class TimeSformer(nn.Module):
    """Clips to tokens: one cls token for the clip, and the patches of its frames, averaged over time.

    Args:
        config: Sizes.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.patches, width))
        self.time_embed = nn.Parameter(torch.zeros(1, config.frames, width))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, config.patch, config.patch)
        rates = torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(SpaceTimeBlock(config, rate) for rate in rates)
        self.norm = nn.LayerNorm(width, eps=config.video_eps)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw truncated normal weights. ``temporal_fc`` starts at zero in every block, as in the released code."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=self.config.spread)
                nn.init.zeros_(module.bias)
        for table in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(table, std=self.config.spread)
        for block in cast(list[SpaceTimeBlock], list(self.blocks)):
            block.temporal_fc.weight.zero_()

    def normalised(self, video: Tensor) -> Tensor:
        """Return bytes, or pixels in [0, 1], as the encoder's input: (x - mean) / std, same shape."""
        dtype = self.pos_embed.dtype
        mean, std = (
            constant(tuple(row), video.device, dtype).view(3, 1, 1)
            for row in (self.config.pixel_mean, self.config.pixel_std)
        )
        pixels = video.to(dtype) if video.is_floating_point() else video.to(dtype) / 255
        return (pixels - mean) / std

    def tokens(self, video: Tensor) -> Tensor:
        """Return all tokens after the final LayerNorm, (B, 1 + N T, D); see `SpaceTimeBlock.forward` for the order.

        Args:
            video: (B, T, 3, S, S), bytes or pixels in [0, 1].

        Raises:
            ValueError: If the clip has another number of frames, or frames of another size, than the model.
        """
        batch, frames, _, *side = video.shape
        if frames != self.config.frames or side != [self.config.image_size] * 2:
            raise ValueError(
                f"a clip of {frames} frames of {side} pixels: the model reads {self.config.frames} frames of "
                f"{self.config.image_size} x {self.config.image_size}"
            )
        pixels = self.normalised(video).flatten(0, 1)
        patches = cast(nn.Conv2d, self.patch_embed.proj)(pixels).flatten(2).mT + self.pos_embed[:, 1:]
        patches = patches.view(batch, frames, *patches.shape[1:]).transpose(1, 2) + self.time_embed[:, None]
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(batch, -1, -1)
        tokens = torch.cat([cls, patches.flatten(1, 2)], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return cast(Tensor, self.norm(tokens))

    def forward(self, video: Tensor) -> Tensor:
        """Return the tokens of clips (B, T, 3, S, S), averaged over time: (B, 1 + N, D), cls first."""
        tokens = self.tokens(video)
        patches = tokens[:, 1:].unflatten(1, (self.config.patches, -1)).mean(2)
        return torch.cat([tokens[:, :1], patches], 1)
