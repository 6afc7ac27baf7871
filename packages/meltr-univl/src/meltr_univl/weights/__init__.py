"""Published weights: reading and writing them."""
