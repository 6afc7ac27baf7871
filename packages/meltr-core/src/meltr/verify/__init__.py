"""Checks of the hypergradients of a real run, for ``meltr verify``."""
