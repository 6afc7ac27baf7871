"""One BERT for two purposes: its first layers read a text alone, the others read the text and a video's tokens."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertEmbeddings, BertLayer

from meltr.video.text import bert
from meltr_alpro.model.config import ModelConfig


def bert_config(config: ModelConfig) -> BertConfig:
    """Return the sizes as a configuration of transformers."""
    return bert.bert_config(
        config,
        num_hidden_layers=config.layers,
        num_attention_heads=config.text_heads,
        type_vocab_size=config.token_types,
        layer_norm_eps=config.text_eps,
    )


class TextEncoder(nn.Module):
    """BERT's embeddings and layers, without a pooler.

    Args:
        config: Sizes.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        sizes = bert_config(config)
        self.config = config
        self.embeddings = BertEmbeddings(sizes)
        self.encoder = nn.Module()
        layers = (BertLayer(sizes, layer_idx=number) for number in range(config.layers))
        self.encoder.layer = nn.ModuleList(layers)

    @property
    def layers(self) -> list[nn.Module]:
        """The layers, from first to last."""
        return list(cast(nn.ModuleList, self.encoder.layer))

    def forward(self, ids: Tensor, seen: Tensor, video: Tensor | None = None, text: Tensor | None = None) -> Tensor:
        """Return the states of texts alone, (B, L, D), or with a video, text first: (B, L + 1 + N, D).

        Args:
            ids: Token ids (B, L); only their shape counts if `text` is given.
            seen: True where a text's token may be attended to, (B, L); all video tokens may.
            video: Video tokens (B, 1 + N, D); None: read the text alone.
            text: States of the text alone, to continue from; None: compute them.
        """
        if text is None:
            text = self._through(cast(Tensor, self.embeddings(ids)), seen, self.layers[: self.config.fusion_from])
        if video is None:
            return text
        seen = nn.functional.pad(seen, (0, video.shape[1]), value=True)
        return self._through(torch.cat([text, video.to(text.dtype)], 1), seen, self.layers[self.config.fusion_from :])

    def _through(self, states: Tensor, seen: Tensor, layers: list[nn.Module]) -> Tensor:
        mask = seen[:, None, None]
        if self.config.attention == "eager":
            mask = torch.zeros_like(mask, dtype=states.dtype).masked_fill(~mask, torch.finfo(states.dtype).min)
        for layer in layers:
            states = layer(states, mask)
        return states
