"""Which modules count as a backbone's repeated blocks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from meltr.blocks import find_blocks
from scope_cases import Block, EncoderDecoder, Towers, Vit


class Stage(nn.Module):
    """A stage of a hierarchical transformer: blocks, and a reduction that may be large."""

    def __init__(self, width: int, depth: int, reduction: int = 2) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.reduction = nn.Linear(width, reduction)


class Residual(nn.Module):
    def __init__(self, width: int, *, shrink: bool = False) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3), nn.Conv2d(width, width, 3)
        self.downsample = nn.Sequential(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width)) if shrink else None


class Tower(nn.Module):
    def __init__(self, kind: type, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(kind(4) for _ in range(depth))


class OtherBlock(Block):
    """Another class: the layer of another tower."""


class Sharing(nn.Module):
    """One layer applied again and again stands once in a container for all its places."""

    def __init__(self) -> None:
        super().__init__()
        layer = Block()
        self.layers = nn.ModuleList([layer, layer, layer])


class Nested(nn.Module):
    """A block with blocks of its own class inside."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(2))
        for layer in self.layers:
            layer.more = nn.ModuleList(Block() for _ in range(2))


def paths(model: nn.Module) -> list[str]:
    found = find_blocks(model)
    names = {id(module): name for name, module in model.named_modules()}
    return [names[id(block)] for block in found]


def vit() -> nn.Module:
    return Vit()


def swin() -> nn.Module:
    model = nn.Module()
    model.stem = nn.Linear(3, 4)
    model.stages = nn.Sequential(Stage(4, 2), Stage(8, 3), Stage(16, 1))
    return model


def swin_with_heavy_stages() -> nn.Module:
    """The blocks hold less than half of the stages: those are the repetition."""
    model = nn.Module()
    model.stages = nn.Sequential(Stage(4, 2, 500), Stage(4, 2, 500))
    return model


def resnet() -> nn.Module:
    model = nn.Module()
    model.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    for number in range(1, 4):
        setattr(model, f"layer{number}", nn.Sequential(Residual(4, shrink=number > 1), Residual(4)))
    model.fc = nn.Linear(4, 2)
    return model


def resnet_of_features() -> nn.Module:
    """Stages are Sequentials in a Sequential, as in torchvision's newer models."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()),
        nn.Sequential(Residual(4), Residual(4)),
        nn.Sequential(Residual(4), Residual(4)),
        nn.Linear(4, 2),
    )


def two_towers() -> nn.Module:
    model = nn.Module()
    model.text, model.image = Tower(Block, 2), Tower(OtherBlock, 3)
    return model


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (vit, ["blocks.0", "blocks.1", "blocks.2"]),
        (swin, [*(f"stages.0.blocks.{i}" for i in range(2)), *(f"stages.1.blocks.{i}" for i in range(3)),
                "stages.2.blocks.0"]),
        (swin_with_heavy_stages, ["stages.0", "stages.1"]),
        (resnet, [f"layer{stage}.{i}" for stage in (1, 2, 3) for i in (0, 1)]),
        (resnet_of_features, ["1.0", "1.1", "2.0", "2.1"]),
        (two_towers, ["text.layers.0", "text.layers.1", *(f"image.layers.{i}" for i in range(3))]),
        (Towers, [f"{tower}.layers.{i}" for tower in ("text", "image") for i in (0, 1)]),
        (EncoderDecoder, [f"{part}.layers.{i}" for part in ("encoder", "decoder") for i in (0, 1)]),
        (Nested, ["layers.0", "layers.1"]),
        (plain, []),
        (Sharing, []),
        (lambda: nn.Linear(2, 2), []),
        (lambda: nn.Sequential(Block()), []),
    ],
    ids=["vit", "swin", "heavy stages", "resnet", "resnet of features", "two towers", "same towers",
         "encoder and decoder", "nested", "plain", "one layer shared", "leaf", "one block"],
)  # fmt: skip
def test_blocks_found(make, expected):
    assert paths(make()) == expected


def test_task_heads_in_a_container_are_no_blocks():
    """scope=heads would leave out just these, and scope=last_block the last block, on which their inputs depend."""
    model = Vit()
    model.heads = nn.ModuleDict({task: nn.Sequential(nn.Linear(3, 1), nn.Sigmoid()) for task in "ab"})
    assert paths(model) == ["blocks.0", "blocks.1", "blocks.2"]


def test_no_block_lies_inside_another_and_each_comes_once():
    torch.manual_seed(0)
    for make in (swin, resnet, two_towers, Nested):
        blocks = find_blocks(make())
        inside = {id(module) for block in blocks for module in block.modules() if module is not block}
        assert not any(id(block) in inside for block in blocks)
        assert len({id(block) for block in blocks}) == len(blocks)
