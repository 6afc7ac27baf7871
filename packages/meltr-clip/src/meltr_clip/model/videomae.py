"""VideoMAE (Tong et al., arXiv 2203.12602) with classes: its encoder reads whole clips, its decoder hidden tubes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import VideoMAEForPreTraining

from meltr.video.losses import wide
from meltr_clip.model.pixels import Normalisation, cropped


class VideoMae(VideoMAEForPreTraining):
    """VideoMAE with its decoder, and the norm of the mean of all tubes that fine-tuned checkpoints have.

    Args:
        config: A VideoMAEConfig.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.fc_norm = nn.LayerNorm(config.hidden_size)
        self.post_init()  # type: ignore[no-untyped-call]


class VideoTower(nn.Module):
    """VideoMAE with a linear head for classes.

    Args:
        towers: The model.
        images: Its image processor.
        classes: Number of classes.
    """

    def __init__(self, towers: VideoMae, images: Any, *, classes: int) -> None:
        super().__init__()
        self.towers = towers
        self.normalised = Normalisation(images, patches=False)
        self.classes = nn.Linear(towers.config.hidden_size, classes)
        nn.init.zeros_(self.classes.bias)
        nn.init.normal_(self.classes.weight, std=towers.config.initializer_range)

    @property
    def grid(self) -> tuple[int, int]:
        """Tubes of a clip: steps in time, and tubes in each."""
        config: Any = self.towers.config
        return config.num_frames // config.tubelet_size, (config.image_size // config.patch_size) ** 2

    def pictures(self, video: Tensor) -> Tensor:
        """Return clips for the encoder, (B, T, 3, S, S), from bytes."""
        normalised: Tensor = self.normalised(video, self.classes.weight.dtype)
        return normalised

    def features(self, pictures: Tensor) -> Tensor:
        """Return the normalised mean of the encoder's states, (B, D)."""
        states = self.towers.videomae(pictures).last_hidden_state
        features: Tensor = self.towers.fc_norm(states.mean(1))
        return features

    def class_logits(self, video: Tensor, shapes: Tensor | None = None) -> Tensor:
        """Return the logits of the classes, (B, C), from bytes (B, T, 3, S, S)."""
        logits: Tensor = self.classes(self.features(self.pictures(video)))
        return logits

    def reconstruction(self, pictures: Tensor, hidden: Tensor) -> Tensor:
        """Return the mean squared error of the hidden tubes, normalised within each tube if the configuration says so.

        Args:
            pictures: (B, T, 3, S, S).
            hidden: True for hidden tubes, equally many in each clip, (B, N).
        """
        loss: Tensor = self.towers(pictures, bool_masked_pos=hidden).loss
        return loss

    def disagreement(self, pictures: Tensor, features: Tensor, box: Tensor) -> Tensor:
        """Return 1 - the mean cosine of clips and of a part of each.

        Args:
            pictures: (B, T, 3, S, S).
            features: Those of the whole clips, (B, D).
            box: Side, top, left of the part, (B, 3).
        """
        view = self.features(cropped(pictures, box))
        return 1 - F.cosine_similarity(wide(features), wide(view)).mean()


def tube_mask(scores: Tensor, steps: int, ratio: float) -> Tensor:
    """Return a mask that hides the same places at all times, as VideoMAE's tube masking: (B, steps P), boolean.

    Args:
        scores: Random numbers; the places with the lowest are hidden, (B, P).
        steps: Steps in time.
        ratio: Share of hidden places; at least one is hidden and one is not.
    """
    places = scores.shape[1]
    count = min(max(1, int(ratio * places)), places - 1)
    rank = scores.argsort(1).argsort(1)
    return torch.cat([rank < count] * steps, 1)
