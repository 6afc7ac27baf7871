"""Sweeps: many runs from one file, and which of them are done. Imports no torch."""
