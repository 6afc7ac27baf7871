"""Texts and captions as token ids, and back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meltr.video.text.wordpiece import CLS, PAD, SEP, Tokenizer, write_vocabulary
from meltr_univl.data.texts import Wording

WORDS = ("add", "salt", "to", "the", "pan")


@pytest.fixture(scope="module")
def wording(tmp_path_factory: pytest.TempPathFactory) -> Wording:
    file = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    write_vocabulary(file, WORDS)
    return Wording(Tokenizer(file, length=8), caption_length=6)


@given(words=st.lists(st.sampled_from(WORDS), max_size=12))
def test_forms(wording: Wording, words: list[str]) -> None:
    ids = [wording.pieces(word)[0] for word in words]
    text = wording.text(" ".join(words))
    framed = [CLS, *ids[:6], SEP]
    assert text.ids.tolist() == framed + [PAD] * (8 - len(framed))
    assert text.mask.tolist() == [1] * len(framed) + [0] * (8 - len(framed))
    caption = wording.caption(" ".join(words))
    kept = ids[:5]
    padding = [0] * (5 - len(kept))
    assert caption.input.tolist() == [CLS, *kept, *padding]
    assert caption.output.tolist() == [*kept, SEP, *padding]
    assert caption.mask.tolist() == [1] * (len(kept) + 1) + padding


@given(words=st.lists(st.sampled_from((*WORDS, "pans", "toxic")), max_size=4))
def test_what_a_caption_says_is_read_back(wording: Wording, words: list[str]) -> None:
    caption = wording.caption(" ".join(words))
    said = wording.words(caption.output.tolist())
    assert " ".join(words).startswith(said)  # whole, or cut where the caption is
    if len(wording.pieces(" ".join(words))) <= 5:
        assert said == " ".join(words)
    assert wording.reference(" ".join(words).upper()) == said


def test_the_end_is_the_first_separator_or_padding(wording: Wording) -> None:
    add, salt = wording.pieces("add salt")
    assert wording.words([add, SEP, salt]) == "add"
    assert wording.words([add, PAD, salt, SEP]) == "add"
    assert wording.words([SEP, add]) == ""
    assert wording.words([10_000, add]) == "[UNK] add"


def test_padding_written_in_a_text_is_text(wording: Wording) -> None:
    assert PAD not in wording.pieces("add [PAD] salt")
    assert wording.text("add [PAD]").mask.sum() > 3


def test_a_caption_needs_room(wording: Wording) -> None:
    with pytest.raises(ValueError, match="caption_length=1"):
        Wording(Tokenizer(Path(wording.tokenizer.file)), caption_length=1)
