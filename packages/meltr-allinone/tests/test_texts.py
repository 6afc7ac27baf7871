"""Texts under the published vocabulary."""

from __future__ import annotations

from torch import Tensor

from meltr.video import Item, Labels
from meltr.video.text.wordpiece import Tokenizer
from meltr_allinone.data.encoder import AllInOneEncoder, Wanted
from meltr_allinone.data.source import Clips
from places import published_vocabulary


def test_the_texts_of_the_published_vocabulary():
    """Lower-case, framed and padded to 40 tokens, or cut; rare words in pieces."""
    file = published_vocabulary()
    labels, clips = Labels("retrieval", {}), Clips({}, {})
    texts = AllInOneEncoder(Tokenizer(file, length=40), labels, clips=clips, wanted=Wanted(48))

    def ids(text: str) -> Tensor:
        return texts.text(Item("", ""), text)["ids"]

    assert texts.tokenizer.size == 30522
    names = file.read_text(encoding="utf-8").splitlines()
    tokens = [names[number] for number in ids("Hello, my dog is CUTE").tolist()]
    assert tokens == ["[CLS]", "hello", ",", "my", "dog", "is", "cute", "[SEP]", *["[PAD]"] * 32]
    long = ids("a man " * 60)
    assert long.shape == (40,)
    assert int(long[-1]) == 102
    words = ids("embeddings")
    assert [names[number] for number in words[1:5].tolist()] == ["em", "##bed", "##ding", "##s"]
    assert texts.continues(words)[:6].tolist() == [False, False, True, True, True, False]
