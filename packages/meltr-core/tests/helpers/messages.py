"""An observer that keeps what a run says."""

from __future__ import annotations

import meltr


class Messages:
    """Keeps the messages of runs."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []
        """Level and text of each message."""

    @meltr.hookimpl
    def on_message(self, level: str, message: str) -> None:
        self.seen.append((level, message))

    @property
    def lines(self) -> list[str]:
        """The texts of all messages."""
        return [message for _, message in self.seen]

    @property
    def warnings(self) -> list[str]:
        """The texts of the warnings."""
        return [message for level, message in self.seen if level == "warning"]
