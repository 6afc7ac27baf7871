from __future__ import annotations

import pytest

from meltr.video.corpus import Corpus, Item
from meltr.video.text.lengths import notes_on_cut, notes_on_long_texts


def corpus(**splits: tuple[Item, ...]) -> Corpus:
    return Corpus("some", "retrieval", splits, {})


def words(count: int) -> str:
    return " ".join(["word"] * count)


@pytest.mark.parametrize(("length", "long"), [(4, 3), (5, 2), (6, 2), (7, 1), (8, 0)])
def test_captions_of_all_splits_are_counted_with_room_for_two_tokens(length, long):
    train = (Item("a", "0", captions=(words(3), words(5))), Item("b", "1", captions=(words(2),)))
    notes = notes_on_long_texts(corpus(train=train, test=(Item("c", "2", captions=(words(6),)),)), length)
    expected = f"{long} of 4 texts have more than {length - 2} words and are truncated (--set text_length)"
    assert notes == ([expected] if long else [])


def test_a_question_is_read_with_its_choices():
    items = (
        Item("a", "0", question=words(4)),
        Item("a", "1", question=words(4), choices=("red", "dark blue"), correct=0),
        Item("a", "2", label="no text at all"),
    )
    assert notes_on_long_texts(corpus(train=items), 6) == [
        "1 of 2 texts have more than 4 words and are truncated (--set text_length)"
    ]
    assert notes_on_long_texts(corpus(train=items), 9) == []


def test_other_texts_have_a_setting_of_their_own():
    assert notes_on_cut([words(3)] * 1200 + ["one"], 2, what="caption") == [
        "1,200 of 1,201 captions have more than 2 words and are truncated (--set caption_length)"
    ]
    assert notes_on_cut([], 2) == []
