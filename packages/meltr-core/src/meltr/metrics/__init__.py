"""Metrics of ranking and classification. They need only NumPy, so that they import quickly."""
