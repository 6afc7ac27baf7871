"""The processes of a run: ranks, data parallelism, sharded checkpoints, gathered tensors."""
