"""Models of transformers: their settings, tokenizers and image processors, and their weights."""
