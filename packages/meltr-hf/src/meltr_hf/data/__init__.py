"""From tables to tensors."""
