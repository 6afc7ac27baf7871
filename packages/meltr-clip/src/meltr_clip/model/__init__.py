"""Towers of transformers with the heads of tasks and losses."""
