"""The losses of a batch of texts."""
