"""The data of a run: examples as tensors."""
