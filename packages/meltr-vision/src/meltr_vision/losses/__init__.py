"""The losses of a batch and their random draws."""
