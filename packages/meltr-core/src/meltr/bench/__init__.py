"""Measurements of the cost of training, for ``meltr bench``."""
