"""The data of a run: frames, texts, and examples as tensors."""
