"""What lies next to torch: graphs and their leaves, vectors in parameter space, buffers, generators."""
