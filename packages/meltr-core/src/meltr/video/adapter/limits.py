"""Checks of a run's texts against the sizes of a published model, and of a model's heads. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from meltr.errors import UserError


def check_vocabulary(tokens: int, most: int) -> None:
    """Check that a vocabulary fits a published model.

    Args:
        tokens: Number of tokens in the run's vocabulary.
        most: Number of rows of the model's table of embeddings.

    Raises:
        UserError: If there are more tokens than rows.
    """
    if tokens > most:
        raise UserError(
            f"The vocabulary has {tokens:,} tokens, the published model {most:,}.",
            "Use vocab.txt of bert-base-uncased with --set vocabulary=FILE.",
        )


def check_length(setting: str, wanted: int, most: int) -> None:
    """Check that a sequence fits a model's position embeddings.

    Args:
        setting: Name of the option for the length of the sequence.
        wanted: Its value.
        most: Number of positions of the model.

    Raises:
        UserError: If the sequence is longer.
    """
    if wanted > most:
        raise UserError(
            f"{setting}={wanted} is more than the {most} positions of the model.",
            f"Use --set {setting}={most} or less.",
        )


def check_heads(heads: Sequence[str], known: Sequence[str], answers: int) -> None:
    """Check which heads a model is built with.

    Args:
        heads: The heads.
        known: Those that the model can have.
        answers: Classes of the head ``answer``.

    Raises:
        ValueError: If a head is unknown, or ``answer`` is requested without classes.
    """
    if set(heads) - set(known) or ("answer" in heads and answers < 1):
        raise ValueError(
            f"heads={tuple(heads)} with answers={answers}: choose heads from {tuple(known)}, and give 'answer' its "
            "classes"
        )
