"""The command line; one command per file, each with ``register(app)``."""
