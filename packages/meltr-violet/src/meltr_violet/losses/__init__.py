"""The losses of a batch and their masks."""
