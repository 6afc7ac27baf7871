"""Names of the losses, and which of them a kind of model serves. Imports nothing."""

from __future__ import annotations

from typing import Literal

CLASSIFYING, WRITING = "text-classification", "text-to-text"

Kind = Literal["encoder", "decoder", "encoder-decoder"]

PRIMARY = {CLASSIFYING: "classification", WRITING: "generation"}
"""Task -> its own loss."""

OWN_OBJECTIVE: dict[Kind, str] = {"encoder": "mlm", "decoder": "lm", "encoder-decoder": "denoising"}
"""Kind of a model -> the loss that such models are pre-trained with."""

SHARED = ("contrastive", "replaced", "reordered")
"""Losses without labels that every kind serves; contrastive needs dropout."""

LOSSES = {task: (first, *OWN_OBJECTIVE.values(), *SHARED) for task, first in PRIMARY.items()}
"""Task -> all losses but those of columns."""

TINY = "tiny"
"""``options.model`` of a small model that is built on the spot."""
