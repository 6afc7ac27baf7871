"""The command line; one command a file, each with ``register(app)``."""
