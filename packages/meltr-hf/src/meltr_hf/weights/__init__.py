"""Configurations, tokenizers and weights, by transformers' own loaders."""
