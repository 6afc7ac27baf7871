"""The data of a run: data sets, prepared files, visual codes, and examples as tensors."""
