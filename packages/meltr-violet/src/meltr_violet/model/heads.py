"""The heads on top of the cross-modal states."""

from __future__ import annotations

from torch import Tensor, nn
from transformers.models.bert.modeling_bert import BertPredictionHeadTransform

from meltr_violet.model.config import ModelConfig
from meltr_violet.model.transformer import bert_config

ANSWER_DROPOUT = 0.5
"""Dropout of MELTR's open-ended answer head; the original uses 0.1."""


def mlp_head(width: int, outputs: int, dropout: float) -> nn.Sequential:
    """Return a head: dropout, D -> 2D, ReLU, 2D -> outputs. Layers 1 and 3 have parameters.

    Args:
        width: D.
        outputs: Number of outputs.
        dropout: Dropout probability of the inputs.
    """
    return nn.Sequential(nn.Dropout(dropout), nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, outputs))


class MaskedTextHead(nn.Module):
    """BERT's masked language modelling head: D -> D, GELU, LayerNorm, D -> vocabulary. Not tied to the word embeddings.

    Args:
        config: Sizes.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.transform = BertPredictionHeadTransform(bert_config(config))
        self.decoder = nn.Linear(config.width, config.vocabulary)

    def forward(self, states: Tensor) -> Tensor:
        """Map states (..., D) to logits (..., V)."""
        logits: Tensor = self.decoder(self.transform(states))
        return logits
