"""What lies on disk: the folder of a run, of its checkpoints, and of several seeds. Imports no torch."""
