"""Helpers that data readers of several backbones share: splits, downloads, pickles from outside. Imports no torch."""
