"""A plain transformer encoder whose losses come from one forward pass, on fixed random tokens."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from meltr.bench.synthetic import TrunkOptions
from meltr.context import Data, Evaluation, RunContext
from meltr.data.loader import LoaderBatches
from meltr.hookspecs import hookimpl

MASKED = 0.25
"""Fraction of the tokens of every example that are hidden and have to be predicted, at least one."""

TEMPERATURE = 0.1


class Tokens(Dataset[dict[str, Tensor]]):
    """Random examples: tokens, the places of the hidden ones, a label, and features to restore at every token.

    All examples have the same number of hidden tokens, so that the host need not wait to know how many there are.
    """

    def __init__(self, options: TrunkOptions, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        shape = (options.examples, options.tokens)
        hidden = max(1, round(MASKED * options.tokens))
        self._columns = {
            "tokens": torch.randint(options.vocabulary, shape, generator=generator),
            "hidden": torch.rand(shape, generator=generator).argsort(1)[:, :hidden],
            "label": torch.randint(options.classes, shape[:1], generator=generator),
            "features": torch.randn(*shape, options.features, generator=generator),
        }

    def __len__(self) -> int:
        """Examples."""
        return len(self._columns["label"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return an example."""
        return {name: column[index] for name, column in self._columns.items()}


class Layer(nn.Module):
    """A pre-norm encoder layer with fused attention."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention_in, self.attention_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feedforward = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, width) to the same shape."""
        split = self.attention_in(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(split[0], split[1], split[2], dropout_p=dropout)
        x = x + self.attention_out(mixed.transpose(1, 2).flatten(2))
        fed: Tensor = self.feedforward(self.norm2(x))
        return x + fed


class Trunk(nn.Module):
    """Embedding, encoder layers, and one head per loss."""

    def __init__(self, options: TrunkOptions) -> None:
        super().__init__()
        width = options.width
        self.embed = nn.Embedding(options.vocabulary + 1, width)  # the last entry represents a hidden token
        self.first = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, options.tokens + 1, width))
        self.layers = nn.Sequential(
            *(Layer(width, options.heads, options.dropout) for _ in range(options.depth)), nn.LayerNorm(width)
        )
        sizes = {"label": options.classes, "masked": options.vocabulary, "restore": options.features, "contrast": 128}
        self.heads = nn.ModuleDict({name: nn.Linear(width, size) for name, size in sizes.items()})

    def forward(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """Map tokens (B, N), those at the places `hidden` (B, M) replaced, to (B, 1 + N, width), class token first."""
        x = self.embed(tokens.scatter(1, hidden, self.embed.num_embeddings - 1))
        x = torch.cat([self.first.expand(len(x), -1, -1), x], dim=1) + self.position
        encoded: Tensor = self.layers(x)
        return encoded


class SharedTrunk:
    """The run-tier hooks."""

    @hookimpl
    def build_data(self, context: RunContext) -> Data:
        """Create the data set."""
        spec, data = context.spec, Tokens(context.options, seed=0)
        train = LoaderBatches(data, spec.train.batch_size, seed=spec.seed)
        held_out = train if spec.bilevel.outer_batch == "held_out" else None
        return Data(train=train, validation=None, held_out=held_out)

    @hookimpl
    def build_model(self, context: RunContext) -> nn.Module:
        """Return the trunk; heads of losses that are not in use are frozen."""
        model = Trunk(context.options)
        for name, head in model.heads.items():
            head.requires_grad_(name in context.losses)
        return model

    @hookimpl
    def compute_task_losses(self, model: Trunk, batch: Mapping[str, Tensor], context: RunContext) -> dict[str, Tensor]:
        """Return the losses named in ``context.losses``, all from one forward pass."""
        encoded = model(batch["tokens"], batch["hidden"])
        rest, hidden = encoded[:, 1:], batch["hidden"]
        losses = {
            "label": lambda head: F.cross_entropy(head(encoded[:, 0]), batch["label"]),
            "masked": lambda head: _masked(head, rest, hidden, batch["tokens"].gather(1, hidden)),
            "restore": lambda head: F.mse_loss(head(rest), batch["features"]),
            "contrast": lambda head: _contrast(head, rest),
        }
        return {name: losses[name](model.heads[name]) for name in context.losses}

    @hookimpl
    def evaluate(self) -> Evaluation:
        """Return an empty evaluation, because random data cannot be learned."""
        return Evaluation({"loss": 0.0}, 0)


def _masked(head: nn.Module, rest: Tensor, hidden: Tensor, tokens: Tensor) -> Tensor:
    """Return the cross-entropy of the tokens (B, M) at the places `hidden` (B, M)."""
    picked = rest.gather(1, hidden.unsqueeze(2).expand(-1, -1, rest.shape[2]))
    return F.cross_entropy(head(picked).flatten(0, 1), tokens.flatten())


def _contrast(head: nn.Module, rest: Tensor) -> Tensor:
    """Return the InfoNCE loss between the two halves of each example."""
    half = rest.shape[1] // 2
    one, other = (F.normalize(head(part.mean(1)), dim=1) for part in (rest[:, :half], rest[:, half:]))
    return F.cross_entropy(one @ other.T / TEMPERATURE, torch.arange(len(one), device=rest.device))
