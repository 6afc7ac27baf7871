"""WordPiece texts and vocabularies."""

from __future__ import annotations

import pytest
import torch

from meltr import UserError
from meltr.video.text.wordpiece import CLS, MASK, PAD, SEP, UNK, Tokenizer, read_vocabulary, write_vocabulary

QUESTION = "What does the woman do 3 times ?"
CHOICES = ("jump", "stage", "roll step", "sway", "count fingers")


@pytest.fixture
def small(tmp_path):
    write_vocabulary(tmp_path / "vocabulary.txt", [QUESTION, *CHOICES, "options: answer: red square"])
    return tmp_path / "vocabulary.txt"


def words(tokenizer: Tokenizer, row: torch.Tensor) -> list[str]:
    names = {number: token for token, number in read_vocabulary(tokenizer.file).items()}
    return [names[int(number)] for number in row if int(number) not in (CLS, SEP, PAD)]


def test_small_vocabulary_knows_every_word_and_letter(small):
    tokenizer = Tokenizer(small, length=12)
    tokens = read_vocabulary(small)
    assert tokenizer.size == len(tokens) == max(tokens.values()) + 1
    ids = tokenizer.encode(["What does the woman do", "a RED square, zeb42"])
    assert ids.shape == (2, 12)
    assert not (ids == UNK).sum() > 1  # the comma alone is unknown
    assert words(tokenizer, ids[0]) == ["what", "does", "the", "woman", "do"]
    assert words(tokenizer, ids[1])[:3] == ["a", "red", "square"]
    assert "".join(words(tokenizer, ids[1])[4:]).replace("##", "") == "zeb42"


def test_rows_are_framed_cut_and_padded(small):
    tokenizer = Tokenizer(small, length=5)
    short, long, empty = tokenizer.encode(["red", "red square red square red", ""])
    assert short.tolist()[0] == CLS
    assert short.tolist()[2:] == [SEP, PAD, PAD]
    assert long[-1] == SEP
    assert len(words(tokenizer, long)) == 3
    assert empty.tolist() == [CLS, SEP, PAD, PAD, PAD]
    assert tokenizer.count("red square red square red") == 7
    assert tokenizer.encode([]).shape == (0, 5)


def test_wrong_and_missing_vocabularies(tmp_path, monkeypatch):
    (tmp_path / "short.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhello\n")
    with pytest.raises(UserError, match=r"\[UNK\] is 1, not 100"):
        Tokenizer(tmp_path / "short.txt")
    with pytest.raises(UserError, match="cannot be read"):
        Tokenizer(tmp_path / "absent.txt")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repository, name: None)
    with pytest.raises(UserError, match="cache has no bert-base-uncased") as caught:
        Tokenizer()
    assert "options.vocabulary=FILE" in caught.value.hint
    with pytest.raises(ValueError, match="length=2"):
        Tokenizer(tmp_path / "short.txt", length=2)


def test_vocabulary_from_the_cache(small, monkeypatch):
    asked = []

    def cached(repository, name):
        asked.append((repository, name))
        return str(small) if len(asked) == 2 else None

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    assert Tokenizer().file == small
    assert asked == [("google-bert/bert-base-uncased", "vocab.txt"), ("bert-base-uncased", "vocab.txt")]


def test_special_tokens_are_those_of_the_model(small):
    tokens = read_vocabulary(small)
    assert [tokens[name] for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")] == [PAD, UNK, CLS, SEP, MASK]
