"""WordPiece tokenizer with the vocabulary of bert-base-uncased, or a small one generated from a data set."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from meltr.errors import UserError
from meltr.files import write_text
from meltr.limits import UnreadableError, file_text

PAD, UNK, CLS, SEP, MASK = 0, 100, 101, 102, 103
"""Token ids of bert-base-uncased."""

VOCABULARY_BYTES = 64 * 2**20
"""Largest vocabulary file; that of bert-base-uncased has 0.2 MiB."""

SPECIAL = {"[PAD]": PAD, "[UNK]": UNK, "[CLS]": CLS, "[SEP]": SEP, "[MASK]": MASK}
"""Special tokens and their line numbers (from 0) in the vocabulary of bert-base-uncased."""

REPOSITORIES = ("google-bert/bert-base-uncased", "bert-base-uncased")
"""Repositories searched for the vocabulary in the hub's cache."""


class Tokenizer:
    """Lower-case WordPiece: [CLS] ... [SEP], truncated and padded with [PAD] to a fixed length (extra ``text``).

    Args:
        vocabulary: File with one token per line; None: vocab.txt of bert-base-uncased from the hub's cache.
        length: X, the number of tokens per text.

    Raises:
        UserError: If there is no vocabulary, or it is not valid for this model.
        ValueError: If `length` is below 3.
    """

    def __init__(self, vocabulary: Path | None = None, *, length: int = 25) -> None:
        transformers = _require("transformers")
        if length < 3:
            raise ValueError(f"length={length}: [CLS], a token and [SEP] need three")
        self.file = vocabulary if vocabulary is not None else cached_vocabulary()
        self.length = length
        tokens = read_vocabulary(self.file)
        self.size = max(tokens.values()) + 1
        self._tokenizer = transformers.BertTokenizerFast(vocab=tokens, do_lower_case=True)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return token ids, (N, X), int64; longer texts are truncated at the end.

        Args:
            texts: N texts.
        """
        return self.pack([self.pieces(text) for text in texts])

    def count(self, text: str) -> int:
        """Return the number of tokens of `text`, including [CLS] and [SEP]; more than X are truncated."""
        return len(self.pieces(text)) + 2

    def pieces(self, text: str) -> list[int]:
        """Return the token ids of `text`, without [CLS] and [SEP] and not truncated."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def pack(self, rows: Iterable[Sequence[int]]) -> Tensor:
        """Return rows of ids as [CLS] ... [SEP], truncated and padded: (N, X), int64."""
        packed = [[CLS, *row[: self.length - 2], SEP] for row in rows]
        return torch.tensor([row + [PAD] * (self.length - len(row)) for row in packed]).reshape(-1, self.length)


def _require(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"Texts need {module.partition('.')[0]}, which cannot be imported: {error}.",
            "Install it with the extra: pip install 'meltr-core[text]'.",
        ) from error


def read_vocabulary(file: Path) -> dict[str, int]:
    """Return token -> id of a file with one token per line.

    Raises:
        UserError: If the file cannot be read, or the special tokens are not on the same lines as in bert-base-uncased.
    """
    try:
        lines = file_text(file, most=VOCABULARY_BYTES).split("\n")
    except (OSError, UnreadableError) as error:
        raise UserError(
            f"The vocabulary {file} cannot be read: {error.__class__.__name__}.",
            "Give vocab.txt of bert-base-uncased: text, one token per line.",
        ) from error
    tokens = {token.rstrip("\r"): number for number, token in enumerate(lines) if token.rstrip("\r")}
    wrong = [
        f"{token} is {tokens.get(token, 'absent')}, not {number}"
        for token, number in SPECIAL.items()
        if tokens.get(token) != number
    ]
    if wrong:
        raise UserError(
            f"{file} is not a vocabulary for this model: {wrong[0]} ({len(tokens):,} tokens).",
            "Give vocab.txt of bert-base-uncased, whose special tokens are on lines 1 and 101 to 104.",
        )
    return tokens


def cached_vocabulary() -> Path:
    """Return vocab.txt of bert-base-uncased from the hub's cache, without network access.

    Raises:
        UserError: If the cache does not have it.
    """
    hub = _require("huggingface_hub")
    for repository in REPOSITORIES:
        found = hub.try_to_load_from_cache(repository, "vocab.txt")
        if isinstance(found, str):
            return Path(found)
    raise UserError(
        "There is no vocabulary: none was given, and the Hugging Face cache has no bert-base-uncased.",
        "Give the file with --set options.vocabulary=FILE (vocab.txt of bert-base-uncased), or download it once on a "
        f"machine with a network: hf download {REPOSITORIES[0]} vocab.txt",
    )


def write_vocabulary(file: Path, texts: Iterable[str]) -> int:
    """Write a small vocabulary with every word of `texts`, the special tokens on their usual lines, and all letters.

    Other words are split into letters, so that no word is unknown.

    Args:
        file: The file to write.
        texts: Texts whose words become whole tokens.

    Returns:
        Number of tokens.
    """
    normalise = _require("tokenizers.normalizers").BertNormalizer(lowercase=True).normalize_str
    split = _require("tokenizers.pre_tokenizers").BertPreTokenizer().pre_tokenize_str
    words = {word for text in texts for word, _ in split(normalise(text))}
    letters = {letter for word in words for letter in word} | set("abcdefghijklmnopqrstuvwxyz0123456789")
    lines = [f"[unused{number}]" for number in range(MASK + 1)]
    for token, number in SPECIAL.items():
        lines[number] = token
    lines += sorted(words | letters) + sorted(f"##{letter}" for letter in letters)
    write_text(file, "\n".join(lines) + "\n")
    return len(lines)
