"""Texts with a class or a target each: the user's tables, a sample, splits, metrics, predictions. Imports no torch.

corpus = cut(open_texts(context.spec), context.spec)
corpus.splits["train"][0].text, corpus.classes
"""

from meltr.texts.corpus import TextCorpus as TextCorpus
from meltr.texts.corpus import TextItem as TextItem
from meltr.texts.opening import cut as cut
from meltr.texts.opening import open_texts as open_texts
from meltr.texts.results import evaluation as evaluation
from meltr.texts.results import predicted as predicted
from meltr.texts.results import texts_of as texts_of
from meltr.texts.writing import writings as writings
from meltr.texts.writing import written as written
