"""g = J q by forward-mode differentiation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from meltr.autograd.recordings import fixed_tangents
from meltr.autograd.vectors import Direction, scaled_all
from meltr.hypergradients.estimators.base import Estimator
from meltr.hypergradients.loss_function import LossFunction
from meltr.hypergradients.passes import Passes
from meltr.hypergradients.problem import OuterProblem
from meltr.torch_private import checkpoints_without_graph, copy_each, is_compiled, preserved_versions


class _WithLosses(nn.Module):
    """Makes `functional_call` replace the parameters that any method of the model sees, not only its ``forward``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, call: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        return call()


def _every_name(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield each place of each parameter once: a tied parameter has several, a module with several names one.

    `functional_call` ties weights by their names. With two names of one module it leaves the tangents in the module.
    """
    for prefix, each in module.named_modules():
        for name, parameter in each.named_parameters(recurse=False, remove_duplicate=False):
            yield f"{prefix}.{name}" if prefix else name, parameter


@contextmanager
def _quiet_first_use() -> Iterator[None]:
    """Silence a deprecation warning that torch raises itself when it first compiles its forward-mode rules."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)
        yield


class ForwardMode(Estimator):
    """g = J q by one forward pass with dual numbers, without a graph.

    Exact. Cost: about two forward passes. Extra memory: the tangents of all layers, which PyTorch keeps until the pass
    ends. Attention runs on the math kernel, because the fused ones have no forward-mode rule. Tied parameters are
    supported; frozen and unused ones have no tangent. A compiled model runs as it was before: compiled code knows no
    dual numbers.

    ``torch.func.jvp`` is not used: it fails on BatchNorm in training mode and does not replay dropout correctly.
    """

    name: ClassVar[str] = "forward"
    tolerance: ClassVar[float | None] = 1e-2
    needs_whole_weights: ClassVar[bool] = True

    def __init__(self) -> None:
        self._memory: list[Tensor] = []

    def most(self, size: int) -> Passes:
        """Return the bound of one pass with dual numbers, with room for what is linear in w alone."""
        return Passes(forward=4, backward=0)

    def __call__(self, problem: OuterProblem, direction: Direction) -> Tensor:
        """Return g = J q, shape (T+1,), float64.

        Raises:
            NotImplementedError: If an operation of the model has no forward-mode derivative (CPU LSTM, CTC loss).
            RuntimeError: The same, from operations that report it differently.
        """
        factor = _factor(problem, direction) if problem.auxiliary.setup.low_precision else None
        scaled = direction if factor is None else scaled_all(direction, factor)
        tangents = self._tangents(problem, scaled)
        memory = self._memory if problem.auxiliary.setup.recorded else None
        functions = problem.auxiliary.functions()
        own = torch.stack([_of_batch(problem, tangents, each, memory) for each in functions]).mean(0)
        return problem.auxiliary.setup.sharing.mean(own if factor is None else own / factor)

    def _tangents(self, problem: OuterProblem, direction: Direction) -> list[tuple[Tensor, Tensor]]:
        """Return weights with their tangents; those of losses that may be recorded lie in the same memory each time."""
        pairs = [(p, q.to(p)) for p, q in zip(problem.parameters, direction, strict=True) if q is not None]
        if not problem.auxiliary.setup.recorded:
            return pairs
        kinds = [(q.shape, q.dtype, q.device) for _, q in pairs]
        if kinds != [(q.shape, q.dtype, q.device) for q in self._memory]:
            self._memory = [torch.empty_like(q) for _, q in pairs]
        copy_each(self._memory, [q for _, q in pairs])
        return [(p, q) for (p, _), q in zip(pairs, self._memory, strict=True)]


def _factor(problem: OuterProblem, direction: Direction) -> Tensor:
    """Return a power of two that scales q to a length near 1, shape (): float16 loses small tangents.

    It stays on the device, so that the host does not wait.
    """
    length = problem.length(direction)
    usable = (length > 0) & length.isfinite()
    return torch.where(usable, torch.exp2(-torch.round(torch.log2(length))), torch.ones_like(length))


def _of_batch(
    problem: OuterProblem,
    pairs: Sequence[tuple[Tensor, Tensor]],
    function: LossFunction,
    memory: Sequence[Tensor] | None,
) -> Tensor:
    """Return g of one batch, shape (T+1,).

    Args:
        problem: The outer problem.
        pairs: Weights with their tangents.
        function: The losses of the batch.
        memory: Where all tangents lie at every call; None: anywhere.
    """
    tangents = {id(p): q for p, q in pairs}
    wrapper = _WithLosses(function.setup.model)
    inside = {id(parameter) for parameter in wrapper.parameters()}
    beside = [p for p in problem.parameters if id(p) in tangents and id(p) not in inside]
    compiled = any(map(is_compiled, wrapper.modules()))
    with (
        torch.compiler.set_stance("force_eager") if compiled else nullcontext(),
        nullcontext() if memory is None or beside else fixed_tangents(memory),
        _quiet_first_use(),
        checkpoints_without_graph(),
        sdpa_kernel(SDPBackend.MATH),
        preserved_versions([weight for weight in beside if weight.numel()]),
        torch.no_grad(),
        forward_ad.dual_level(),
    ):
        for weight in beside:  # functional_call does not reach a head outside the model: set its tangent in place
            weight.copy_(forward_ad.make_dual(weight.detach().clone(), tangents[id(weight)]))
        duals = {
            id(parameter): forward_ad.make_dual(parameter.detach().requires_grad_(), tangents[id(parameter)])
            for parameter in wrapper.parameters()
            if id(parameter) in tangents
        }
        parts = functional_call(
            wrapper,
            {name: duals[id(parameter)] for name, parameter in _every_name(wrapper) if id(parameter) in duals},
            (lambda: function.run(graph=False, replay=True, keep_buffers=True).parts,),
            tie_weights=False,
        )
        products = []
        for part in parts:
            tangent = forward_ad.unpack_dual(part).tangent
            products.append(torch.zeros_like(part) if tangent is None else tangent.detach())
        return torch.stack([product.double() for product in products])
