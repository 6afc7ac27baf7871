"""Metrics and baselines of the tasks of video and language."""
