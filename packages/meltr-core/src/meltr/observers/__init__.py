"""Observers of a run: the metrics file, the console, ``log.txt`` and TensorBoard. Imports nothing heavy."""
