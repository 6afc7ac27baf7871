"""Names of the tasks on texts, and of the columns that they read. Imports nothing."""

from __future__ import annotations

CLASSIFYING, WRITING = "text-classification", "text-to-text"
TASKS = (CLASSIFYING, WRITING)

TEXT, LABEL, TARGET, SPLIT, ID = "text", "label", "target", "split", "id"
"""Columns with a meaning of their own; all others are further columns."""
