"""Which parts of a backbone to compile: those that its losses call."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from meltr.errors import UserError
from meltr.torch_private import is_compiled


def compile_called(model: nn.Module, evaluate: Callable[[], object]) -> list[str]:
    """Compile the parts of a model that its losses call; return their names.

    ``model.compile()`` compiles ``forward`` alone, and does nothing for a model whose losses call methods and parts of
    it. So the losses are evaluated once, and each outermost module that they call is compiled into graphs of its own.
    A module without submodules, such as a linear layer, gains nothing and stays as it is. A model with its own
    ``compile`` decides by itself.

    Args:
        model: The backbone, in training mode.
        evaluate: Evaluates the losses.

    Raises:
        UserError: If the losses call no module that could be compiled.
    """
    if type(model).compile is not nn.Module.compile:
        model.compile()
        return [name for name, module in model.named_modules() if is_compiled(module)]
    chosen = [module for module in outermost_called(model, evaluate) if any(True for _ in module.children())]
    names = {id(module): name for name, module in model.named_modules()}
    if not chosen:
        raise UserError(
            f"compile=true would compile nothing: the losses call no module of {type(model).__name__} that has parts.",
            "Use --set compile=false, or let the losses call the model or its submodules.",
        )
    for module in chosen:
        module.compile()
    return [names[id(module)] for module in chosen]


def outermost_called(model: nn.Module, evaluate: Callable[[], object]) -> list[nn.Module]:
    """Return the modules of a model that are called while no other module of it runs, in the order of first calls.

    Args:
        model: The model.
        evaluate: Calls what is to be watched.
    """
    found: dict[int, nn.Module] = {}
    depth = 0

    def enters(module: nn.Module, inputs: object) -> None:
        nonlocal depth
        if depth == 0:
            found.setdefault(id(module), module)
        depth += 1

    def leaves(module: nn.Module, inputs: object, result: object) -> None:
        nonlocal depth
        depth -= 1

    handles = [
        handle
        for module in model.modules()
        for handle in (module.register_forward_pre_hook(enters), module.register_forward_hook(leaves, always_call=True))
    ]
    try:
        evaluate()
    finally:
        for handle in handles:
            handle.remove()
    return list(found.values())
