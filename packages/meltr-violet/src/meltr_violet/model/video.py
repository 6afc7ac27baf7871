"""The video branch: Video Swin (Liu et al. 2022) with one feature map per frame, and the video tokens."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.swin_transformer import SwinTransformerBlock
from torchvision.models.video.swin_transformer import ShiftedWindowAttention3d, SwinTransformer3d

from meltr_violet.model.config import ModelConfig
from meltr_violet.model.windows import WindowAttention

SPREAD = 0.02
"""Standard deviation of the initial learned embeddings."""


class PatchEmbedding(nn.Module):
    """Convolution over two frames with a stride of one frame. An all-zero frame is appended to the clip.

    Zero after normalisation is the mean colour. Parameters are named as in torchvision's patch embedding.

    Args:
        patch: Kernel (frames, rows, columns); rows and columns are also the stride.
        embed_dim: Output channels.
        norm_layer: Makes the LayerNorm over channels.
    """

    def __init__(self, patch: tuple[int, int, int], embed_dim: int, norm_layer: partial[nn.LayerNorm]) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv3d(3, embed_dim, patch, (1, *patch[1:]))
        self.norm = norm_layer(embed_dim)

    def forward(self, clip: Tensor) -> Tensor:
        """Map (B, 3, T, H, W) to (B, T, ceil(H / 4), ceil(W / 4), C)."""
        frames, rows, columns = self.patch
        height, width = clip.shape[-2:]
        padded = F.pad(clip, (0, -width % columns, 0, -height % rows, 0, frames - 1))
        normalised: Tensor = self.norm(self.proj(padded).permute(0, 2, 3, 4, 1))
        return normalised


def _block(
    dim: int, heads: int, *, fused: bool, attn_layer: type[ShiftedWindowAttention3d], **settings: Any
) -> SwinTransformerBlock:
    return SwinTransformerBlock(dim, heads, attn_layer=WindowAttention if fused else attn_layer, **settings)


class VideoSwin(nn.Module):
    """torchvision's `SwinTransformer3d` without pooling and classifier, and with the patch embedding above.

    Where the feature map is not larger than the window, the window shrinks to the map. The position bias is then taken
    from the first rows and columns of the table for the full window, as in the original. This is right if only the time
    axis shrinks, and scrambled if a side of the picture does. The weights were trained at 224 pixels, where no side
    shrinks.

    Args:
        config: Sizes.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        trunk = SwinTransformer3d(
            patch_size=list(config.patch),
            embed_dim=config.swin_width,
            depths=list(config.swin_depths),
            num_heads=list(config.swin_heads),
            window_size=list(config.window),
            mlp_ratio=config.mlp_ratio,
            stochastic_depth_prob=config.stochastic_depth,
            num_classes=1,
            norm_layer=partial(nn.LayerNorm, eps=config.video_eps),
            block=partial(_block, fused=config.attention == "fused"),
            patch_embed=lambda patch_size, embed_dim, norm_layer: PatchEmbedding(config.patch, embed_dim, norm_layer),
        )
        self.patch_embed: nn.Module = trunk.patch_embed
        self.features: nn.Sequential = trunk.features
        self.norm: nn.Module = trunk.norm

    def forward(self, clip: Tensor) -> Tensor:
        """Map a normalised clip (B, 3, T, H, W) to (B, T, h, w, D)."""
        normalised: Tensor = self.norm(self.features(self.patch_embed(clip)))
        return normalised

    def blocks(self) -> list[nn.Module]:
        """Return the attention blocks of all stages, in order."""
        return [block for stage in self.features if isinstance(stage, nn.Sequential) for block in stage]


class VideoEncoder(nn.Module):
    """Encode clips to tokens: for every frame, a learned cls token and its Swin cells.

    Position and frame embeddings are added to them.
    There is no projection between Swin and the transformer, because both have the same width.

    Args:
        config: Sizes.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.swin = VideoSwin(config)
        self.emb_cls = nn.Parameter(SPREAD * torch.randn(1, 1, 1, config.width))
        self.emb_pos = nn.Parameter(SPREAD * torch.randn(1, 1, config.positions, config.width))
        self.emb_len = nn.Parameter(SPREAD * torch.randn(1, config.max_frames, 1, config.width))
        self.norm = nn.LayerNorm(config.width, eps=config.video_eps)
        shape = (1, 1, 3, 1, 1)
        self.register_buffer("pixel_mean", torch.tensor(config.pixel_mean).reshape(shape), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(config.pixel_std).reshape(shape), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """Map frames to tokens.

        Args:
            frames: (B, T, 3, H, W), pixels in [0, 1], or bytes.

        Returns:
            (B, T n, D) with n = 1 + h w, frame after frame.

        Raises:
            ValueError: If there are more frames or cells than embeddings.
        """
        cells = self.swin(self.normalised(frames))
        batch, time, rows, columns, width = cells.shape
        if time > self.config.max_frames or rows * columns >= self.config.positions:
            raise ValueError(
                f"{time} frames of {rows}x{columns} cells: at most {self.config.max_frames} frames of "
                f"{self.config.positions - 1} cells have embeddings"
            )
        tokens = torch.cat(
            [self.emb_cls.to(cells).expand(batch, time, 1, width), cells.flatten(2, 3)],
            dim=2,
        )
        tokens = tokens + self.emb_pos[:, :, : tokens.shape[2]] + self.emb_len[:, :time]
        normalised: Tensor = self.norm(tokens)
        return normalised.flatten(1, 2)

    def normalised(self, frames: Tensor) -> Tensor:
        """Map pixels (B, T, 3, H, W) to a normalised clip (B, 3, T, H, W)."""
        pixels = frames.to(self.pixel_mean.dtype) / 255 if frames.dtype == torch.uint8 else frames
        return ((pixels - self.pixel_mean) / self.pixel_std).transpose(1, 2)
