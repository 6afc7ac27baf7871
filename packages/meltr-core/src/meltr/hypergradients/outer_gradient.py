"""The last step, shared by all schemes: from g to the gradient of the combiner's parameters."""

from __future__ import annotations

from torch import Tensor, autograd, nn

from meltr.combiners.base import sensitivities
from meltr.hypergradients.objective import primary_objective


def outer_gradient(
    combiner: nn.Module, losses: Tensor, products: Tensor, *, gamma: float = 0.0, direct_at: Tensor | None = None
) -> list[Tensor | None]:
    """Return the gradient of the primary objective with respect to phi, the combiner's parameters.

    By implicit differentiation it is -grad_phi (a(phi) . g) (eqs. 9-11 of the paper): a double backward pass through
    the combiner alone. L_pri also depends on phi directly, through its regulariser. Algorithm 1 and the released code
    ignore this direct term.

    Args:
        combiner: m; must be twice differentiable.
        losses: l, shape (T+1,), treated as constants.
        products: g = J q, shape (T+1,), treated as constants.
        gamma: Weight of the regulariser |m(l) - sum(l)| (eq. 6); used only by the direct term.
        direct_at: Losses at which to add the direct term, gamma * grad_phi |m(l) - sum(l)|: those at the weights where
            the scheme takes L_pri. None: do not add it.

    Returns:
        One gradient per trainable parameter of `combiner`, in their order; None where m does not depend on it.
    """
    parameters = [parameter for parameter in combiner.parameters() if parameter.requires_grad]
    combined, a = sensitivities(combiner, losses, create_graph=True)
    objective = -(a * products.to(a)).sum()
    if direct_at is not None:
        if direct_at is not losses:
            combined, _ = sensitivities(combiner, direct_at, create_graph=True)
        objective = objective + primary_objective(direct_at[0], direct_at, combined, gamma)
    if not parameters or not objective.requires_grad:
        return [None] * len(parameters)
    return list(autograd.grad(objective, parameters, allow_unused=True))
