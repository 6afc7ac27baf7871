"""Observers of a run: the metrics file, the console, ``log.txt``, TensorBoard and trackers. Imports nothing heavy."""
