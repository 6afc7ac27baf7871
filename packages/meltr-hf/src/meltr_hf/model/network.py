"""A model of transformers, and the heads of meltr's losses on its features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from meltr_hf.names import Kind

Pooling = Literal["first", "last", "mean"]

POOLING: Mapping[Kind, Pooling] = {"encoder": "first", "decoder": "last", "encoder-decoder": "mean"}
"""Kind of a model -> how its features become one of a text, by default."""


class Network(nn.Module):
    """A model with heads.

    Args:
        pretrained: A model of transformers, with its own head for words or without.
        kind: Its kind.
        pooling: How the features of tokens become one of a text.
        heads: Name -> number of outputs of a linear layer on features.
        columns: Number of outputs for every further column.
    """

    def __init__(
        self, pretrained: Any, kind: Kind, pooling: Pooling, *, heads: Mapping[str, int], columns: Sequence[int]
    ) -> None:
        super().__init__()
        self.pretrained, self.kind, self.pooling = pretrained, kind, pooling
        width = pretrained.config.get_text_config().hidden_size
        self.heads = nn.ModuleDict({name: nn.Linear(width, outputs) for name, outputs in heads.items()})
        self.columns = nn.ModuleList(nn.Linear(width, outputs) for outputs in columns)

    def features(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the features of tokens (B, L, D): of the encoder, if there is one.

        Args:
            ids: Shape (B, L).
            mask: 1 for a token, 0 for padding; (B, L).
        """
        body = self.pretrained.get_encoder() if self.kind == "encoder-decoder" else self.pretrained.base_model
        found: Tensor = body(input_ids=ids, attention_mask=mask).last_hidden_state
        return found

    def pooled(self, features: Tensor, mask: Tensor) -> Tensor:
        """Return the feature of every text, (B, D).

        Args:
            features: Shape (B, L, D).
            mask: 1 for a token, 0 for padding at the end; (B, L).
        """
        if self.pooling == "first":
            return features[:, 0]
        if self.pooling == "last":
            last = (mask.sum(1) - 1).clamp_min(0)
            return features.gather(1, last[:, None, None].expand(-1, 1, features.shape[2]))[:, 0]
        there = mask.to(features.dtype)[:, :, None]
        return (features * there).sum(1) / there.sum(1).clamp_min(1)

    def texts(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return the feature of every text, (B, D)."""
        return self.pooled(self.features(ids, mask), mask)

    def words(self, ids: Tensor, mask: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return the logits of words: (B, L, V) for every token, or (B, T, V) for every target of an encoder-decoder.

        Args:
            ids: Shape (B, L).
            mask: Shape (B, L).
            targets: Ids that an encoder-decoder has to write, -100 after their end; (B, T).
        """
        more = {} if targets is None else {"labels": targets}  # The model shifts them in its own way.
        found: Tensor = self.pretrained(input_ids=ids, attention_mask=mask, **more).logits
        return found

    def write(self, ids: Tensor, mask: Tensor, **settings: Any) -> Tensor:
        """Return the ids of what the model writes for every text; a decoder's without its prompt."""
        written: Tensor = self.pretrained.generate(input_ids=ids, attention_mask=mask, do_sample=False, **settings)
        return written[:, ids.shape[1] :] if self.kind == "decoder" else written

    def blocks(self) -> list[nn.Module]:
        """Return the repeated layers of the model: the modules of every list of equal modules, no list in a list."""
        found: list[nn.Module] = []
        taken: list[str] = []
        for name, module in self.pretrained.named_modules():
            equal = isinstance(module, nn.ModuleList) and len({type(each) for each in module}) == 1
            if equal and not any(name.startswith(f"{other}.") for other in taken):
                taken.append(name)
                found += list(module)
        return found


def new_head(head: nn.Linear, generator: torch.Generator, deviation: float = 0.02) -> None:
    """Initialise a head as transformers does: weights N(0, 0.02^2), biases 0; whatever was drawn before."""
    with torch.no_grad():
        head.weight.copy_(deviation * torch.randn(head.weight.shape, generator=generator))
        head.bias.zero_()
