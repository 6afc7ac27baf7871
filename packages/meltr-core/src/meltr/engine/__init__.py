"""The bilevel loop and the life of a run."""
