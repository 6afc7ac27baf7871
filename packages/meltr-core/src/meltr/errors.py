"""Errors for users: each says what is wrong, what was found, and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MeltrError(Exception):
    """A known kind of failure, shown without a traceback.

    Args:
        message: What is wrong and the value that was found.
        hint: What to do next: the valid choices or the next command.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """Return message and hint, as a library user sees them in a traceback."""
        return self.message if self.hint is None else f"{self.message}\n{self.hint}"


class UserError(MeltrError):
    """The input is wrong (an option, a file, a folder): exit code 2."""

    exit_code = 2


class LoopError(UserError, ValueError):
    """A training loop gives `Bilevel` something that it cannot train with."""


class NoForwardModeError(LoopError, NotImplementedError):
    """Torch has no forward mode for an operation of the losses, which the chosen estimator needs."""


class PluginError(MeltrError):
    """A plugin broke its contract; the message names the plugin, the hook and the value."""


class NonFiniteError(MeltrError):
    """A gradient or a weight became NaN or infinite during training."""


class NonFiniteLossError(NonFiniteError):
    """A loss became NaN or infinite during training."""


class StoppedRun(BaseException):
    """A run was asked to stop, and did: by a signal or by its limit of time. Plugins must not catch it.

    Args:
        reason: What asked, such as ``SIGTERM``.
        exit_code: Of the command: 128 + the signal's number, or 124 for the limit of time.
        state: Where the run stands, such as ``at step 12 of 40; saved: step-000012``; empty before it began.

    Attributes:
        told: Whether the user has been told, and how to go on.
    """

    def __init__(self, reason: str, exit_code: int, state: str = "") -> None:
        super().__init__(f"stopped by {reason} {state}".strip())
        self.reason, self.exit_code, self.state = reason, exit_code, state
        self.told = False


def closest(word: str, choices: Iterable[str]) -> str | None:
    """Return the choice that a misspelt `word` probably means; None if none is close."""
    return next(iter(difflib.get_close_matches(word, sorted(choices), n=1, cutoff=0.5)), None)


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return ``"Did you mean 'x'? Valid choices: ..."`` for a misspelt `word`.

    Args:
        word: What the user wrote.
        choices: The valid words.
    """
    known = sorted(set(choices))
    close = closest(word, known)
    guess = f"Did you mean {close!r}? " if close else ""
    return f"{guess}Valid choices: {', '.join(known) or 'none'}."
