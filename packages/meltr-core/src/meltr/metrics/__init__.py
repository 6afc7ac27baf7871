"""Metrics and the trivial answers to compare them with. NumPy alone, so that they are quick to import."""
