"""Helpers shared by the data readers of several backbones: splits, downloads, untrusted pickles. Imports no torch."""
