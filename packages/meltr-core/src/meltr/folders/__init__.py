"""Folders on disk: of a run, of its checkpoints, and of several seeds. Imports no torch."""
