"""Texts with a class or a target each: tables, a sample, splits, metrics, and the base class of backbones of texts.

corpus = cut(open_texts(context.spec), context.spec)
corpus.splits["train"][0].text, corpus.classes

The names of the last lines need torch and are loaded on first use, so that registration imports none.
"""

import importlib
from typing import TYPE_CHECKING, Any

from meltr.texts.columns import Column as Column
from meltr.texts.corpus import TextCorpus as TextCorpus
from meltr.texts.corpus import TextItem as TextItem
from meltr.texts.opening import cut as cut
from meltr.texts.opening import open_texts as open_texts
from meltr.texts.results import evaluation as evaluation
from meltr.texts.results import predicted as predicted
from meltr.texts.results import texts_of as texts_of
from meltr.texts.writing import writings as writings
from meltr.texts.writing import written as written

if TYPE_CHECKING:
    from meltr.texts.adapter import TextAdapter as TextAdapter
    from meltr.texts.batches import TextEncoder as TextEncoder

_HOME = {"TextAdapter": "meltr.texts.adapter", "TextEncoder": "meltr.texts.batches"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'meltr.texts' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
