"""Metrics and baselines of the video-and-language tasks."""
