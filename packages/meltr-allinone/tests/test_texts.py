"""Texts under the published vocabulary."""

from __future__ import annotations

from meltr.video.text.wordpiece import Tokenizer
from meltr_allinone.texts import Texts
from places import published_vocabulary


def test_the_texts_of_the_published_vocabulary():
    """Lower-case, framed and padded to 40 tokens, or cut; rare words in pieces."""
    file = published_vocabulary()
    texts = Texts(Tokenizer(file, length=40), "retrieval", {})
    assert texts.tokenizer.size == 30522
    names = file.read_text(encoding="utf-8").splitlines()
    tokens = [names[number] for number in texts.ids("Hello, my dog is CUTE").tolist()]
    assert tokens == ["[CLS]", "hello", ",", "my", "dog", "is", "cute", "[SEP]", *["[PAD]"] * 32]
    long = texts.ids("a man " * 60)
    assert long.shape == (40,)
    assert int(long[-1]) == 102
    words = texts.ids("embeddings")
    assert [names[number] for number in words[1:5].tolist()] == ["em", "##bed", "##ding", "##s"]
    assert texts.continues(words)[:6].tolist() == [False, False, True, True, True, False]
