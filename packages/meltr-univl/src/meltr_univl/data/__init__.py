"""The data of a run: texts, captions, and examples as tensors."""
