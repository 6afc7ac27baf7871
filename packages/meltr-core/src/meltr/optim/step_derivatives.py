"""The derivative of an optimiser's next step with respect to the gradient, one function each; for the scheme SAMA.

A step is w - w' as a function of the gradient u, with the optimiser's state held constant. It is elementwise, so its
derivative has the shape of the parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from meltr.errors import UserError
from meltr.optim.bert_adam import BertAdam
from meltr.shards import local

StepDerivative = Callable[[Tensor, Mapping[str, Any], Mapping[str, Any], Tensor | None], Tensor | float]
"""Called with a parameter, its group, its state (empty before the first step) and u (None counts as zero)."""


def sgd(
    parameter: Tensor, group: Mapping[str, Any], state: Mapping[str, Any], gradient: Tensor | None
) -> Tensor | float:
    """Return lr, times 1 - dampening if there is a momentum buffer; plus lr momentum with Nesterov's method."""
    rate = float(group["lr"])
    buffered = group["momentum"] and state.get("momentum_buffer") is not None
    own = 1.0 - group["dampening"] if buffered else 1.0
    return rate * (own + group["momentum"]) if group["nesterov"] else rate * own


def adam(
    parameter: Tensor, group: Mapping[str, Any], state: Mapping[str, Any], gradient: Tensor | None
) -> Tensor | float:
    """Return the derivative of Adam's and AdamW's step (see `_of_moments`), with bias corrections.

    With an L2 term, u in the formulas is u + weight_decay * w, as in the optimiser.
    """
    u = _gradient(parameter, gradient)
    if group["weight_decay"] and not group.get("decoupled_weight_decay"):
        u = u + group["weight_decay"] * local(parameter.detach())
    number = float(state["step"]) + 1 if "step" in state else 1.0
    beta1, beta2 = (float(beta) for beta in group["betas"])
    return _of_moments(u, group, state, (1 - beta1**number, 1 - beta2**number))


def adamw(
    parameter: Tensor, group: Mapping[str, Any], state: Mapping[str, Any], gradient: Tensor | None
) -> Tensor | float:
    """Return the derivative of AdamW's step: Adam's without an L2 term."""
    return adam(parameter, {**group, "weight_decay": 0.0}, state, gradient)


def bert_adam(
    parameter: Tensor, group: Mapping[str, Any], state: Mapping[str, Any], gradient: Tensor | None
) -> Tensor | float:
    """Return the derivative of BertAdam's step: Adam's without bias corrections, c1 = c2 = 1."""
    return _of_moments(_gradient(parameter, gradient), group, state, (1.0, 1.0))


DERIVATIVES: Mapping[type[torch.optim.Optimizer], StepDerivative] = {
    torch.optim.SGD: sgd,
    torch.optim.AdamW: adamw,  # before its base class Adam
    torch.optim.Adam: adam,
    BertAdam: bert_adam,
}
"""The optimisers whose step can be differentiated."""

KNOWN = "SGD, Adam, AdamW and BertAdam"


def step_derivative_of(optimizer: torch.optim.Optimizer) -> StepDerivative:
    """Return the derivative of an optimiser's step.

    Raises:
        UserError: If the derivative is unknown.
    """
    found = next((each for kind, each in DERIVATIVES.items() if isinstance(optimizer, kind)), None)
    if found is None:
        raise UserError(
            f"scheme 'sama' differentiates the inner optimiser's step and does not support {type(optimizer).__name__}.",
            f"Use {KNOWN}, or another scheme: --set scheme=aid-fp-lite.",
        )
    if any(group.get("amsgrad") for group in optimizer.param_groups):
        raise UserError(
            "scheme 'sama' does not support amsgrad.", "Use Adam or AdamW without it, or scheme 'aid-fp-lite'."
        )
    return found


def _gradient(parameter: Tensor, gradient: Tensor | None) -> Tensor:
    return torch.zeros_like(local(parameter.detach())) if gradient is None else gradient


def _of_moments(
    u: Tensor, group: Mapping[str, Any], state: Mapping[str, Any], corrections: tuple[float, float]
) -> Tensor:
    """Return the derivative of lr m_hat / (sqrt(s_hat) + eps) with respect to u.

    With m = beta1 m0 + (1 - beta1) u and s = beta2 s0 + (1 - beta2) u^2, where a hat means division by the corrections
    c1 and c2, it is lr D with

        D = (1 - beta1) / (c1 (sqrt(s_hat) + eps)) - m_hat (1 - beta2) u / (c2 sqrt(s_hat) (sqrt(s_hat) + eps)^2).
    """
    (beta1, beta2), (c1, c2) = (float(beta) for beta in group["betas"]), corrections
    mean = local(state["exp_avg"]) if "exp_avg" in state else torch.zeros_like(u)
    square = local(state["exp_avg_sq"]) if "exp_avg_sq" in state else torch.zeros_like(u)
    mean_hat = (beta1 * mean + (1 - beta1) * u) / c1
    root = ((beta2 * square + (1 - beta2) * u * u) / c2).sqrt()
    below = root + float(group["eps"])
    relative = torch.where(root > 0, u / root, 0.0)  # at most sqrt(c2 / (1 - beta2)); 0 where u and s are 0
    curved = (1 - beta2) / c2 * (mean_hat / below) * (relative / below)
    slope: Tensor = float(group["lr"]) * ((1 - beta1) / (c1 * below) - curved)
    return slope
