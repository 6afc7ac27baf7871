"""What a tokenizer of transformers must have to be one of a trained model. Imports neither torch nor transformers."""

from __future__ import annotations

from typing import Any

from meltr.errors import UserError

FEWEST_WORDS = 2
"""Tokens for words, or parts of words, that any tokenizer has."""


def check_words(tokenizer: Any, source: object) -> None:
    """Check that a tokenizer knows words: where its files are missing, transformers makes one that knows none.

    Args:
        tokenizer: A tokenizer of transformers.
        source: Name or folder of its model, for the message.

    Raises:
        UserError: If it has only special tokens.
    """
    special = set(tokenizer.all_special_ids)
    if len(tokenizer) - len(special) < FEWEST_WORDS:
        hint = "Its files belong beside those of the model, such as tokenizer.json: tokenizer.save_pretrained(FOLDER)"
        raise UserError(f"model '{source}' has no tokenizer: no words, only {len(special)} special tokens", hint)
