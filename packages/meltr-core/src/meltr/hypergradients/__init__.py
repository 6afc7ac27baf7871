"""Hypergradients in loss space: the outer gradient from T+1 scalars, without a second-order graph of the backbone.

With l the task losses, m the combiner, a = dm/dl, J = dl/dw and any direction q held fixed,

    grad_phi <grad_w m(l), q> = grad_phi (a(phi) . g),      g = J q.

A *scheme* chooses q (one file each, listed in `schemes`); a *product estimator* computes g (one file each in
`products`); `outer_gradient` does the rest, a double backward through the combiner alone.
"""
