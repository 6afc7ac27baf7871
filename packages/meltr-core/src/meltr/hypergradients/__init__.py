"""Hypergradients in loss space: the outer gradient from T+1 scalars, without a second-order graph of the backbone.

With l the task losses, m the combiner, a = dm/dl, J = dl/dw and any direction q held fixed,

    grad_phi <grad_w m(l), q> = grad_phi (a(phi) . g),      g = J q.

A *scheme* chooses q (`schemes`, one file each); an *estimator* computes g (`estimators`, one file each);
`outer_gradient` does the rest, a double backward through the combiner alone.
"""
