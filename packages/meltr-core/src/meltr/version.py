"""The version of meltr-core; the adapters have the same version."""

__version__ = "0.1.0"
