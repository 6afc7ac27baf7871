"""What every reader of texts returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class TextItem:
    """One text.

    Args:
        text: The text, not empty.
        label: Name of its class; empty for the task ``text-to-text``.
        id: File and line, for messages; unique.
        columns: The further columns of its line, by name: labels of other tasks. Empty cells are absent.
        target: The text to write for it, in the task ``text-to-text``; empty for others.
    """

    text: str
    label: str
    id: str
    columns: Mapping[str, str] = field(default_factory=dict)
    target: str = ""


@dataclass(frozen=True)
class TextCorpus:
    """All texts of a data set.

    Args:
        splits: Name of a split (``train``, ``validation``, ``test``, ``held_out``) -> its texts.
        classes: Names of the classes of the training texts, sorted; a class is known by its index here. Empty for the
            task ``text-to-text``.
    """

    splits: Mapping[str, tuple[TextItem, ...]]
    classes: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the further columns of the training texts, in the order of their first appearance."""
        return tuple(dict.fromkeys(name for item in self.splits["train"] for name in item.columns))

    def index_of(self, label: str) -> int:
        """Return the index of a class; -100 if no training text has it."""
        return self.classes.index(label) if label in self.classes else -100
