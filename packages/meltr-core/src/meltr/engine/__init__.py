"""Runs from start to end: training, evaluation, checkpoints and prediction."""
