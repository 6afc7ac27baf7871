"""SAMA: the hypergradient that knows the inner optimiser's step (Choe et al., NeurIPS 2023)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from meltr.errors import UserError
from meltr.hypergradients.problem import OuterProblem
from meltr.hypergradients.vectors import Direction, local
from meltr.optim.bert_adam import BertAdam


def sama(problem: OuterProblem) -> Direction:
    """Return q = lr D v, where lr D is the elementwise derivative of the inner optimiser's step by the gradient.

    "Making Scalable Meta Learning Practical", section 3.2: w' = w - step(u), so dL_pri(w')/dphi is
    -grad_phi <u, lr D v>, with the base Jacobian replaced by the identity as in AID-FP-Lite. Not in the MELTR paper.
    For Adam, with m = beta1 m0 + (1 - beta1) u and s = beta2 s0 + (1 - beta2) u^2, hats for the bias corrections,

        D = (1 - beta1) / (c1 (sqrt(s_hat) + eps)) - m_hat (1 - beta2) u / (c2 sqrt(s_hat) (sqrt(s_hat) + eps)^2).

    For BertAdam, c1 = c2 = 1. For Adam with an L2 term, u in these formulas is what the optimiser makes of it,
    u + weight_decay * w. For SGD, D is 1 (1 + momentum with Nesterov's). v is taken at w, as in AID-FP-Lite; gradient
    clipping is left out of D, BertAdam's too.

    Cost: the backward of v and one for u. Extra memory: three gradients.

    Raises:
        UserError: If the inner optimiser is unknown or neither SGD, Adam, AdamW nor BertAdam.
    """
    optimizer = problem.inner_optimizer
    if not isinstance(optimizer, (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, BertAdam)):
        found = "none was given" if optimizer is None else f"found {type(optimizer).__name__}"
        raise UserError(
            f"scheme 'sama' differentiates the inner optimiser's step: {found}.",
            "It knows SGD, Adam, AdamW and BertAdam; pass inner_optimizer=... to Bilevel.",
        )
    if any(group.get("amsgrad") for group in optimizer.param_groups):
        raise UserError(
            "scheme 'sama' does not know amsgrad.", "Use Adam or AdamW without it, or scheme 'aid-fp-lite'."
        )
    problem.learning_rates()  # every parameter must belong to the optimiser
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    v = problem.primary_gradient()
    u = problem.unified_gradient()
    found_direction: list[Tensor | None] = []
    for parameter, own, gradient in zip(problem.parameters, v, u, strict=True):
        if own is None:
            found_direction.append(None)
            continue
        slope = step_derivative(optimizer, parameter, groups[id(parameter)], gradient)
        found_direction.append(own * slope)
    return found_direction


def step_derivative(
    optimizer: torch.optim.Optimizer, parameter: Tensor, group: dict[str, Any], gradient: Tensor | None
) -> Tensor | float:
    """Return the derivative of the optimiser's next step (w - w') by the gradient, of the parameter's shape.

    Args:
        optimizer: SGD, Adam, AdamW or BertAdam.
        parameter: One of its parameters.
        group: The parameter's group.
        gradient: u of this parameter; None counts as zero.
    """
    rate = float(group["lr"])
    if isinstance(optimizer, torch.optim.SGD):
        buffered = group["momentum"] and optimizer.state.get(parameter, {}).get("momentum_buffer") is not None
        own = 1.0 - group["dampening"] if buffered else 1.0
        return rate * (own + group["momentum"]) if group["nesterov"] else rate * own
    beta1, beta2 = (float(beta) for beta in group["betas"])
    state = optimizer.state.get(parameter, {})
    nothing = torch.zeros_like(local(parameter.detach()))
    u = nothing if gradient is None else gradient
    decoupled = isinstance(optimizer, (torch.optim.AdamW, BertAdam)) or group.get("decoupled_weight_decay")
    if group["weight_decay"] and not decoupled:
        u = u + group["weight_decay"] * local(parameter.detach())
    mean = local(state["exp_avg"]) if "exp_avg" in state else nothing
    square = local(state["exp_avg_sq"]) if "exp_avg_sq" in state else nothing
    number = float(state["step"]) + 1 if "step" in state else 1.0
    c1, c2 = (1.0, 1.0) if isinstance(optimizer, BertAdam) else (1 - beta1**number, 1 - beta2**number)
    mean_hat = (beta1 * mean + (1 - beta1) * u) / c1
    root = ((beta2 * square + (1 - beta2) * u * u) / c2).sqrt()
    below = root + float(group["eps"])
    relative = torch.where(root > 0, u / root, 0.0)  # at most sqrt(c2 / (1 - beta2)); 0 where u and s are 0
    curved = (1 - beta2) / c2 * (mean_hat / below) * (relative / below)
    slope: Tensor = rate * ((1 - beta1) / (c1 * below) - curved)
    return slope
