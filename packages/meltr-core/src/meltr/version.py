"""The version of meltr-core; the adapters have the same one."""

__version__ = "0.1.0"
