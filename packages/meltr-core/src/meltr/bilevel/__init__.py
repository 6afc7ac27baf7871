"""Algorithm 1 of the paper for any training loop."""
