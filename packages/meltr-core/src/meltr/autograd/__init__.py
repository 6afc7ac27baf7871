"""Helpers for torch.autograd: graphs and their leaves, vectors in parameter space, buffers, generators."""
