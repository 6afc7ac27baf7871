"""g = J q by forward-mode differentiation."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from meltr.autograd.leaves import reached_leaves
from meltr.autograd.vectors import Direction, scale, unchanged_versions
from meltr.hypergradients.estimators.base import Estimator
from meltr.hypergradients.loss_function import LossFunction
from meltr.hypergradients.problem import OuterProblem


class _WithLosses(nn.Module):
    """Makes `functional_call` replace the parameters that any method of the model sees, not only its forward."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, call: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        return call()


@contextmanager
def _quiet_first_use() -> Iterator[None]:
    """Torch compiles its forward-mode rules on first use, with a deprecation warning that is none of the user's."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)
        yield


class ForwardMode(Estimator):
    """g = J q by one forward with dual numbers, without a graph.

    Exact. Cost: about two forwards. Extra memory: the tangents of all layers, which PyTorch keeps until the pass ends.
    Attention runs on the math kernel, the fused ones have no forward-mode rule; tied parameters are handled, frozen and
    unused ones have no tangent.

    ``torch.func.jvp`` would not do: it fails on BatchNorm in training mode and replays dropout wrongly.
    """

    name: ClassVar[str] = "forward"
    needs_whole_weights: ClassVar[bool] = True

    def __call__(self, problem: OuterProblem, direction: Direction) -> Tensor:
        """Return g = J q, shape (T+1,), float64.

        Raises:
            NotImplementedError: If an operation of the model has no forward-mode derivative (CPU LSTM, CTC loss).
            RuntimeError: The same, from operations that say so differently (a compiled model before torch 2.15).
        """
        factor = _factor(problem, direction)
        scaled = direction if factor == 1.0 else scale(direction, factor)
        own = [_of_batch(problem, scaled, function) for function in problem.auxiliary.functions()]
        return problem.auxiliary.setup.sharing.mean(torch.stack(own).mean(0) / factor)


def _factor(problem: OuterProblem, direction: Direction) -> float:
    """Return a power of two that brings q to a length near 1 in low precision, where float16 loses small tangents."""
    length = problem.norm(direction) if problem.auxiliary.setup.low_precision else 1.0
    return 2.0 ** -round(math.log2(length)) if 0.0 < length < math.inf else 1.0


def _of_batch(problem: OuterProblem, direction: Direction, function: LossFunction) -> Tensor:
    tangents = {id(p): q.to(p) for p, q in zip(problem.parameters, direction, strict=True) if q is not None}
    products, missed = _with_duals(tangents, function, [])
    if missed:
        products, _ = _with_duals(tangents, function, missed)
    return torch.stack([product.double() for product in products])


def _with_duals(
    tangents: dict[int, Tensor], function: LossFunction, in_place: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the tangents of the losses, and the weights that they reach otherwise than through the model's attributes.

    The model's attributes are replaced by dual numbers that require no gradient. So a graph is there only if the losses
    hold weights in another way: in a list, in a closure, in a module beside the model.

    Args:
        tangents: The tangent of every parameter, by its id.
        function: Of the losses.
        in_place: Weights of that other kind, which get their tangents in place.
    """
    wrapper = _WithLosses(function.setup.model)
    kept = [weight for weight in in_place if weight.numel()]
    with _quiet_first_use(), sdpa_kernel(SDPBackend.MATH), unchanged_versions(kept), forward_ad.dual_level():
        duals = {}
        for name, parameter in wrapper.named_parameters():
            own, tangent = parameter.detach(), tangents.get(id(parameter))
            duals[name] = own if tangent is None else forward_ad.make_dual(own, tangent)
        with torch.no_grad():
            for weight in in_place:
                weight.copy_(forward_ad.make_dual(weight.detach().clone(), tangents[id(weight)]))
        torch.clear_autocast_cache()
        parts = functional_call(
            wrapper, duals, (lambda: function.run(graph=True, replay=True, keep_buffers=True).parts,)
        )
        missed = [leaf for leaf in reached_leaves(parts) if id(leaf) in tangents]
        found = [forward_ad.unpack_dual(part).tangent for part in parts]
        products = [torch.zeros_like(p) if t is None else t.detach() for p, t in zip(parts, found, strict=True)]
    torch.clear_autocast_cache()
    return products, missed
