"""Checks that the hypergradients of a real run are right: behind ``meltr verify``."""
