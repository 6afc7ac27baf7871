"""The data of a run: texts and captions as tensors, and examples."""
