"""The repeated blocks of a backbone: the units of checkpointing, sharding and the outer step's scope."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from torch import nn

_CONTAINERS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)
FINER = 0.5
"""A finer repetition is preferred if it still holds this fraction of the parameters of the coarser one."""

SMALLEST = 0.1
"""A class of blocks counts if it holds at least this fraction of the parameters of the largest; heads do not."""


def find_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the repeated blocks of a model (transformer layers, residual blocks), in the order of registration.

    Blocks are modules of one class that occur at least twice in a ModuleList, Sequential or ModuleDict and contain
    other modules. Several such classes may count (towers), except those with less than a tenth of the parameters of the
    largest (equal heads in a container). Of nested classes (stages of blocks) the finer one counts, if it holds at
    least half of the parameters of the coarser one.

    Args:
        model: The backbone.

    Returns:
        The blocks; empty if nothing repeats. No block lies inside another.
    """
    families: dict[type, list[nn.Module]] = defaultdict(list)
    for container in model.modules():
        if isinstance(container, _CONTAINERS):
            for child in container.children():
                if any(True for _ in child.children()) and any(True for _ in child.parameters()):
                    families[type(child)].append(child)
    repeated = [_without_nested(family) for family in families.values()]
    candidates = [family for family in repeated if len(family) > 1]
    chosen: list[list[nn.Module]] = []
    for family in sorted(candidates, key=_size, reverse=True):
        outer = next((other for other in chosen if _inside(family, other)), None)
        if outer is not None and _size(family) >= FINER * _size(outer):
            chosen[chosen.index(outer)] = family
        elif outer is None and not any(_inside(other, family) for other in chosen):
            chosen.append(family)
    least = SMALLEST * max(map(_size, chosen), default=0)
    chosen = [family for family in chosen if _size(family) >= least]
    wanted = {id(block) for family in chosen for block in family}
    return [module for module in model.modules() if id(module) in wanted]


def _size(family: Sequence[nn.Module]) -> int:
    return sum({id(p): p.numel() for block in family for p in block.parameters()}.values())


def _inside(inner: Sequence[nn.Module], outer: Sequence[nn.Module]) -> bool:
    """Return True if a block of `inner` lies inside a block of `outer`."""
    below = {id(module) for block in outer for module in block.modules() if module is not block}
    return any(id(block) in below for block in inner)


def _without_nested(family: Sequence[nn.Module]) -> list[nn.Module]:
    """Drop repeated references to a module and blocks that lie inside another of the same class."""
    unique = list({id(block): block for block in family}.values())
    below = {id(module) for block in unique for module in block.modules() if module is not block}
    return [block for block in unique if id(block) not in below]
