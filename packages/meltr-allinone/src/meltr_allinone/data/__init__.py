"""The data of a run: frames and texts as tensors, and examples."""
