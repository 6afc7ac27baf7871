"""Measures what training costs: behind ``meltr bench``."""
