"""Measures what training costs, and checks that hypergradients are right: behind ``meltr bench`` and ``meltr verify``.

Everything is measured on the trainer itself: a `problem.Problem` holds a run's model on a few fixed batches, and a
`problem.Stepper` takes training steps of one variant of the run, from the same weights as often as wanted.
"""
