"""`Bilevel` in the training loops of other libraries. Each module imports its library only when it is used."""
