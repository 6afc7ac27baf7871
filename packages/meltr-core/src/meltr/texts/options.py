"""Settings that backbones of texts share (``options.*``). Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from meltr.specs import Info

SKIP = "skip"
"""What is said of a further column that is not learned."""


class TextOptions(Info):
    """Base class for the settings of a backbone of texts.

    A subclass may give a field another default, and another description in its docstring.

    Args:
        text_length: Most tokens of a text; longer ones are truncated.
        columns: Further column -> what it holds: ``classes``, a ``number``, or ``skip``. Others are told by their
            cells.
        eval_batch_size: Texts per batch in evaluation and prediction.
    """

    text_length: int = Field(128, ge=4)
    columns: dict[str, Literal["classes", "number", "skip"]] = Field({})
    eval_batch_size: int = Field(64, ge=1)
