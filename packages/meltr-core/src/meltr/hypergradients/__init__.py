"""Hypergradients in loss space: the outer gradient from T+1 scalars, without a second-order graph of the backbone.

With task losses l, combiner m, task weights a = dm/dl, J = dl/dw, and any direction q held constant,

    grad_phi <grad_w m(l), q> = grad_phi (a(phi) . g),      g = J q.

A *scheme* chooses q (`schemes`, one file each). An *estimator* computes g (`estimators`, one file each).
`outer_gradient` does the rest: a double backward pass through the combiner alone.
"""
