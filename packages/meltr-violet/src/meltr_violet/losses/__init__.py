"""The losses of a batch, and what they mask."""
