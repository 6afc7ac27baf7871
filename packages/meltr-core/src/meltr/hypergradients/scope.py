"""Which parameters an outer step considers: all, or those near the losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from meltr.blocks import find_blocks
from meltr.errors import UserError
from meltr.hypergradients.reduced_model import Ancestry, ReducedModel
from meltr.torch_private import is_compiled

Kind = Literal["full", "last_block", "heads"]


@dataclass(frozen=True)
class Scope:
    """The parameters that an outer step considers.

    Heads are the parameters outside the blocks on which no block's input depends: everything after the last blocks. A
    last block is a block on which no other block's input depends, without the parameters it shares with other blocks. A
    model with several towers has one last block per tower. The second-to-last blocks are those on which only last
    blocks depend, and so on.

    Args:
        kind: ``full``: all parameters; ``heads``; ``last_block``: the heads and the last blocks.
        blocks: Number of last blocks per tower that ``last_block`` takes; all of them if there are fewer.
        modules: The model's blocks; None: see `meltr.blocks.find_blocks`.

    Raises:
        ValueError: If `blocks` is below 1.
    """

    kind: Kind = "full"
    blocks: int = 1
    modules: Sequence[nn.Module] | None = None

    def __post_init__(self) -> None:
        if self.blocks < 1:
            raise ValueError(f"blocks of a scope must be at least 1, got {self.blocks}")

    @property
    def is_full(self) -> bool:
        """True if the outer step considers all parameters."""
        return self.kind == "full"

    def __str__(self) -> str:
        """Return the scope in words."""
        return f"last {self.blocks} blocks" if self.kind == "last_block" and self.blocks > 1 else self.kind

    def find(self, model: nn.Module, parameters: Sequence[Tensor], evaluate: Callable[[], Any]) -> ReducedModel:
        """Find the parameters in scope from the graph of one evaluation.

        Args:
            model: The backbone.
            parameters: All parameters w.
            evaluate: Evaluates the losses with a graph.

        Raises:
            UserError: If there are no blocks, or nothing is in scope.
        """
        wanted = find_blocks(model) if self.modules is None else list(self.modules)
        hint = "Use --set scope=full, or name the blocks in the plugin's hook model_blocks."
        if not wanted:
            raise UserError(f"scope={self.kind}: {type(model).__name__} has no repeated blocks to cut at.", hint)
        if any(map(is_compiled, model.modules())):
            raise UserError(
                f"scope={self.kind} cannot look into a compiled model.", "Turn compile off, or use scope=full."
            )
        ancestry = Ancestry(parameters)
        inputs: dict[nn.Module, set[int]] = {block: set() for block in wanted}

        def look(block: nn.Module, args: Any, kwargs: Any) -> None:
            inputs[block] |= ancestry.of((args, kwargs))

        handles = [block.register_forward_pre_hook(look, with_kwargs=True) for block in wanted]
        try:
            evaluate()
        finally:
            for handle in handles:
                handle.remove()
        chosen = _in_scope(0 if self.kind == "heads" else self.blocks, parameters, inputs)
        if not chosen:
            raise UserError(f"scope={self.kind}: no trainable parameter of {type(model).__name__} is in scope.", hint)
        return ReducedModel(model, chosen)


def _in_scope(count: int, parameters: Sequence[Tensor], inputs: dict[nn.Module, set[int]]) -> list[Tensor]:
    """Return the parameters of the heads and of the last `count` blocks, in the order of `parameters`.

    Args:
        count: Number of last blocks per tower.
        parameters: All parameters.
        inputs: For each block, the indices of the parameters on which its input depends.
    """
    places = {id(parameter): index for index, parameter in enumerate(parameters)}
    own = {block: {places[id(p)] for p in block.parameters() if id(p) in places} for block in inputs}
    alone = {block: mine.difference(*(own[each] for each in own if each is not block)) for block, mine in own.items()}
    after = {
        block: [each for each in inputs if each is not block and mine & inputs[each]] for block, mine in alone.items()
    }
    chosen = set(range(len(parameters))) - set().union(*inputs.values()) - set().union(*own.values())
    last: set[nn.Module] = set()
    for _ in range(count):
        found = {block for block in inputs if last.issuperset(after[block])} - last
        if not found:
            break
        last |= found
    chosen = chosen.union(*(alone[block] for block in last))
    return [parameter for index, parameter in enumerate(parameters) if index in chosen]
