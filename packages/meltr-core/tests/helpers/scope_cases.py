"""Backbones whose blocks and heads are known by hand; every block counts how often it is evaluated."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tallies import Tally

WIDTH = 4


class Block(nn.Module):
    """A residual block with dropout."""

    def __init__(self, width: int = WIDTH, dropout: float = 0.2) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.Tanh(), nn.Dropout(dropout))
        self.tally = Tally()

    @property
    def calls(self) -> int:
        """Return how often it was evaluated."""
        return self.tally.count

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        self.tally.count += 1
        return x + self.mlp(x if memory is None else x + memory)


class Vit(nn.Module):
    """Embedding, blocks, a frozen norm, a module without parameters, a head: two passes, two losses each."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.embed = nn.Linear(3, WIDTH)
        self.position = nn.Parameter(torch.randn(WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.norm = nn.LayerNorm(WIDTH).requires_grad_(False)
        self.noise = nn.Dropout(0.1)
        self.head = nn.Linear(WIDTH, 3)
        self.register_buffer("x", torch.randn(6, 3), persistent=False)
        self.register_buffer("y", torch.randint(0, 3, (6,)), persistent=False)

    def features(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.position
        for block in self.blocks:
            x = block(x)
        return self.norm(self.noise(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))

    def losses(self) -> dict[str, Tensor]:
        one, other = self(self.x), self(self.x.flip(0) + 0.1 * torch.randn_like(self.x))
        return {
            "ce": F.cross_entropy(one, self.y),
            "same": (one - other.flip(0)).square().mean(),
            "size": one.square().mean(),
            "features": self.features(self.x).square().mean(),
        }

    def heads(self) -> list[str]:
        return ["head.weight", "head.bias"]

    def last_block(self) -> list[str]:
        return [*names(self, "blocks.2."), *self.heads()]

    def below(self) -> list[Block]:
        return list(self.blocks[:-1])


class Parts(Vit):
    """The same, but plugins call its parts: no forward of the whole model."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(self.embed, *self.blocks)
        del self.embed, self.blocks

    def features(self, x: Tensor) -> Tensor:
        return self.norm(self.noise(self.body(x) + self.position))

    def losses(self) -> dict[str, Tensor]:
        hidden = self.body(self.x)
        one, other = self.head(self.norm(hidden)), self.head(self.noise(self.body(-self.x)))
        return {
            "ce": F.cross_entropy(one, self.y),
            "other": F.cross_entropy(other, self.y),
            "size": (hidden * self.position).square().mean(),
            "both": (one * other).mean(),
        }

    def heads(self) -> list[str]:
        return ["position", "head.weight", "head.bias"]

    def last_block(self) -> list[str]:
        return ["position", *names(self, "body.3."), "head.weight", "head.bias"]

    def below(self) -> list[Block]:
        return [self.body[1], self.body[2]]


class Tied(nn.Module):
    """A language model: its output layer is its embedding, which lies below the blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(2)))
        self.out = nn.Linear(WIDTH, 7)
        self.out.weight = self.embed.weight
        self.register_buffer("tokens", torch.randint(0, 7, (4, 5)), persistent=False)

    def losses(self) -> dict[str, Tensor]:
        hidden = self.blocks(self.embed(self.tokens))
        logits = self.out(hidden)
        return {
            "next": F.cross_entropy(logits[:, :-1].flatten(0, 1), self.tokens[:, 1:].flatten()),
            "same": F.cross_entropy(logits.flatten(0, 1), self.tokens.flatten()),
            "again": F.linear(hidden, self.embed(self.tokens[0])).square().mean(),
            "size": hidden.square().mean(),
        }

    def heads(self) -> list[str]:
        return ["out.bias"]

    def last_block(self) -> list[str]:
        return [*names(self, "blocks.1."), "out.bias"]

    def below(self) -> list[Block]:
        return [self.blocks[0]]


class Towers(nn.Module):
    """Two towers with blocks of their own; a projection each and a common temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.image = (
            nn.ModuleDict(
                {
                    "stem": nn.Linear(3, WIDTH),
                    "layers": nn.Sequential(*(Block() for _ in range(2))),
                    "out": nn.Linear(WIDTH, WIDTH),
                }
            )
            for _ in range(2)
        )
        self.temperature = nn.Parameter(torch.tensor(0.3))
        self.register_buffer("x", torch.randn(2, 5, 3), persistent=False)

    def losses(self) -> dict[str, Tensor]:
        text, image = (
            tower["out"](tower["layers"](tower["stem"](x)))
            for tower, x in zip((self.text, self.image), self.x, strict=True)
        )
        logits = text @ image.T * self.temperature.exp()
        where = torch.arange(5)
        return {
            "to text": F.cross_entropy(logits, where),
            "to image": F.cross_entropy(logits.T, where),
            "text": text.square().mean(),
            "image": image.square().mean(),
        }

    def heads(self) -> list[str]:
        return ["temperature", *names(self, "text.out."), *names(self, "image.out.")]

    def last_block(self) -> list[str]:
        return [*self.heads(), *names(self, "text.layers.1."), *names(self, "image.layers.1.")]

    def below(self) -> list[Block]:
        return [self.text["layers"][0], self.image["layers"][0]]


class Pass(nn.Module):
    """An encoder or a decoder around an embedding that is a module of both."""

    def __init__(self, embed: nn.Embedding) -> None:
        super().__init__()
        self.embed = embed
        self.layers = nn.ModuleList(Block() for _ in range(2))

    def forward(self, tokens: Tensor, memory: Tensor | None = None) -> Tensor:
        x = start = self.embed(tokens)
        for layer in self.layers:
            x = layer(x, memory=memory)
        return x + start


class EncoderDecoder(nn.Module):
    """One embedding module in encoder and decoder; the memory of the encoder enters every block of the decoder."""

    def __init__(self) -> None:
        super().__init__()
        shared = nn.Embedding(7, WIDTH)
        self.encoder, self.decoder = Pass(shared), Pass(shared)
        self.out = nn.Linear(WIDTH, 7)
        self.register_buffer("source", torch.randint(0, 7, (4, 3)), persistent=False)
        self.register_buffer("target", torch.randint(0, 7, (4, 3)), persistent=False)

    def losses(self) -> dict[str, Tensor]:
        memory = self.encoder(self.source)
        hidden = self.decoder(self.target, memory)
        logits = self.out(hidden).transpose(1, 2)
        return {
            "target": F.cross_entropy(logits, self.target),
            "source": F.cross_entropy(logits, self.source),
            "size": hidden.square().mean(),
            "match": (hidden * memory).mean(),
        }

    def heads(self) -> list[str]:
        return names(self, "out.")

    def last_block(self) -> list[str]:
        return [*names(self, "decoder.layers.1."), *self.heads()]

    def below(self) -> list[Block]:
        return [*self.encoder.layers, self.decoder.layers[0]]


class Masked:
    """Features and a mask in a container that pytree does not know."""

    def __init__(self, features: Tensor, mask: Tensor) -> None:
        self.features, self.mask = features, mask


class FrozenReader(nn.Module):
    """A frozen module after the blocks; it is fed a container, and reads a weight that is another module's."""

    def __init__(self, owner: nn.Linear) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(WIDTH), requires_grad=False)
        self.owner = [owner]  # a list: not a module of this one

    def forward(self, x: Masked) -> Masked:
        return Masked(x.features * self.scale + self.owner[0].weight.mean(), x.mask)


class Containers(nn.Module):
    """Modules before and after the blocks that exchange containers, as detection backbones do."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block() for _ in range(2)))
        self.head = nn.Linear(WIDTH, 3)
        self.first, self.last = (FrozenReader(self.head) for _ in range(2))
        self.reader = FrozenReader(self.head)
        self.register_buffer("x", torch.randn(6, WIDTH), persistent=False)
        self.register_buffer("y", torch.randint(0, 3, (6,)), persistent=False)

    def losses(self) -> dict[str, Tensor]:
        masked = self.first(Masked(self.x, self.x > -0.5))
        hidden = self.last(Masked(self.blocks(masked.features), masked.mask))
        logits = self.head(hidden.features * hidden.mask)
        return {
            "ce": F.cross_entropy(logits, self.y),
            "wrong": F.cross_entropy(logits, self.y.flip(0)),
            "size": logits.square().mean(),
            "read": self.reader(Masked(self.x, self.x)).features.square().mean(),
        }

    def heads(self) -> list[str]:
        return ["head.bias"]  # the first module reads the head's weight

    def last_block(self) -> list[str]:
        return [*names(self, "blocks.1."), *self.heads()]

    def below(self) -> list[Block]:
        return [self.blocks[0]]


class InPlace(nn.Module):
    """What a module below returns is changed in place by the caller, with a function that is not idempotent."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(3, WIDTH), nn.BatchNorm1d(WIDTH))
        self.activation = nn.SiLU(inplace=True)
        self.blocks = nn.Sequential(*(Block() for _ in range(2)))
        self.head = nn.Linear(WIDTH, 3)
        self.register_buffer("x", torch.randn(6, 3), persistent=False)
        self.register_buffer("y", torch.randint(0, 3, (6,)), persistent=False)

    def losses(self) -> dict[str, Tensor]:
        hidden = self.activation(self.stem(self.x))
        hidden += 1
        for block in self.blocks:
            hidden = block(hidden).mul_(1.5)
        logits = self.head(hidden)
        return {
            "ce": F.cross_entropy(logits, self.y),
            "wrong": F.cross_entropy(logits, self.y.flip(0)),
            "size": logits.square().mean(),
            "hidden": hidden.square().mean(),
        }

    def heads(self) -> list[str]:
        return names(self, "head.")

    def last_block(self) -> list[str]:
        return [*names(self, "blocks.1."), *self.heads()]

    def below(self) -> list[Block]:
        return []  # evaluated again: what it returned has changed


class Again(Vit):
    """The last block is applied twice, and all blocks have one norm in common."""

    def __init__(self) -> None:
        super().__init__()
        for block in self.blocks[1:]:
            block.mlp[0] = self.blocks[0].mlp[0]

    def features(self, x: Tensor) -> Tensor:
        return super().features(x) + self.blocks[-1](x.mean(1, keepdim=True).expand(-1, WIDTH) ** 2)

    def losses(self) -> dict[str, Tensor]:
        hidden = self.blocks[-1](self.features(self.x))
        return super().losses() | {"features": hidden.square().mean()}

    def last_block(self) -> list[str]:
        return [*names(self, "blocks.2.mlp.1."), *self.heads()]


def names(model: nn.Module, start: str) -> list[str]:
    """Names of the trainable parameters below a prefix."""
    return [name for name, parameter in model.named_parameters() if name.startswith(start) and parameter.requires_grad]


MODELS = [Vit, Parts, Tied, Towers, EncoderDecoder, Containers, InPlace, Again]
