"""Texts and captions as token ids, and token ids as the text that is scored.

The forms are those of the public repository microsoft/UniVL, which mlvlab/MELTR shares.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from meltr.video.text.wordpiece import CLS, PAD, SEP, Tokenizer, read_vocabulary


class TextIds(NamedTuple):
    """A text for the text encoder.

    Args:
        ids: [CLS] words [SEP], padded with [PAD], (W,), int64.
        mask: 1 for real tokens, (W,), int64.
    """

    ids: Tensor
    mask: Tensor


class CaptionIds(NamedTuple):
    """A caption for the decoder.

    Args:
        input: [CLS] words, padded with [PAD], (L,), int64.
        mask: 1 for the real positions of `input`, (L,), int64.
        output: words [SEP], padded with [PAD], (L,), int64: the target of each position.
    """

    input: Tensor
    mask: Tensor
    output: Tensor


class Wording:
    """Turns texts into token ids and back.

    Args:
        tokenizer: WordPiece; its length is W.
        caption_length: L, positions of the decoder; None: W, as in UniVL's code.
    """

    def __init__(self, tokenizer: Tokenizer, *, caption_length: int | None = None) -> None:
        self.tokenizer = tokenizer
        self.caption_length = tokenizer.length if caption_length is None else caption_length
        if self.caption_length < 2:
            raise ValueError(f"caption_length={caption_length}: a word and [SEP] need two")
        self._tokens = {number: token for token, number in read_vocabulary(tokenizer.file).items()}

    def pieces(self, text: str) -> list[int]:
        """Return the token ids of `text`, without special tokens or truncation; ``[PAD]`` in it is ordinary text."""
        return self.tokenizer.pieces(text.replace("[PAD]", "[ PAD ]"))

    def text(self, text: str) -> TextIds:
        """Return a text for the text encoder: truncated to W - 2 tokens between [CLS] and [SEP]."""
        pieces = self.pieces(text)
        return TextIds(self.tokenizer.pack([pieces])[0], _mask(len(pieces) + 2, self.tokenizer.length))

    def caption(self, caption: str) -> CaptionIds:
        """Return a caption for the decoder: truncated to L - 1 tokens."""
        pieces = self.pieces(caption)[: self.caption_length - 1]
        return CaptionIds(
            _padded([CLS, *pieces], self.caption_length),
            _mask(len(pieces) + 1, self.caption_length),
            _padded([*pieces, SEP], self.caption_length),
        )

    def words(self, ids: Iterable[int]) -> str:
        """Return the text of generated ids, up to the first [SEP] or [PAD], with word pieces joined.

        Punctuation stays separate (``it ' s``), and ``#`` and white space are removed at both ends, as in UniVL's
        evaluation.
        """
        tokens = []
        for number in map(int, ids):
            if number in (SEP, PAD):
                break
            tokens.append(self._tokens.get(number, "[UNK]"))
        return " ".join(tokens).replace(" ##", "").strip("#").strip()

    def reference(self, caption: str) -> str:
        """Return a reference as UniVL's evaluation scores it: lower case, in WordPiece tokens, truncated to L - 1."""
        return self.words(self.caption(caption).output.tolist())


def _padded(ids: Sequence[int], length: int) -> Tensor:
    return torch.tensor([*ids, *[PAD] * (length - len(ids))])


def _mask(real: int, length: int) -> Tensor:
    return (torch.arange(length) < real).long()
