"""A model of transformers with heads."""
