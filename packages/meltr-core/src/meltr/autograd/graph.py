"""What the autograd graphs of several losses share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def shared_backwards(losses: Sequence[Tensor]) -> float:
    """Return the cost of one backward pass per loss, in units of one backward pass through all losses.

    Between 1 (the losses share no part of the graph) and the number of losses (they share all of it), measured in
    operations.
    of operations.

    Args:
        losses: The losses with their graphs, 0-dim each.
    """
    reached = [_operations(loss) for loss in losses]
    union = set().union(*reached)
    return sum(map(len, reached)) / max(1, len(union))


def needed_later(losses: Sequence[Tensor]) -> list[bool]:
    """Tell for each loss whether a later one shares a part of its graph, so that its backward pass must not free it.

    Args:
        losses: The losses with their graphs, 0-dim each, in the order of their backward passes.
    """
    reached = [_operations(loss) for loss in losses]
    return [not nodes.isdisjoint(set().union(*reached[place + 1 :])) for place, nodes in enumerate(reached)]


def nodes_of(*losses: Tensor) -> dict[Any, None]:
    """Return the nodes of the graphs of losses, including those of leaves, in the order in which they are found."""
    found: dict[Any, None] = {}
    waiting = [loss.grad_fn for loss in losses]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found[node] = None
            waiting.extend(following for following, _ in node.next_functions)
    return found


def _operations(loss: Tensor) -> set[Any]:
    return {node for node in nodes_of(loss) if node.next_functions}  # leaves cost nothing
