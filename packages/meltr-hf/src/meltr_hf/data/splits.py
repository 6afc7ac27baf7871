"""The splits of a run: texts, the further columns that are learned, and their batches."""

from __future__ import annotations

from collections.abc import Sequence

from meltr.context import Data, RunContext
from meltr.data.loader import LoaderBatches
from meltr.texts import TextCorpus, TextItem
from meltr_hf.data.columns import Column, describe
from meltr_hf.data.encoding import Collate, TextEncoder
from meltr_hf.names import LOSSES, WRITING


def columns_in(corpus: TextCorpus, context: RunContext) -> tuple[list[Column], dict[str, str]]:
    """Return the further columns that the run learns, and why others are of no use.

    Raises:
        UserError: If a column is ambiguous.
    """
    found: list[Column] = []
    useless: dict[str, str] = {}
    train = corpus.splits["train"]
    for name in context.losses:
        if name not in LOSSES[context.spec.task]:
            cells = [item.columns[name] for item in train if name in item.columns]
            column = describe(name, cells, context.options.columns.get(name))
            if isinstance(column, str):
                useless[name] = column
            else:
                found.append(column)
    return found, useless


def make_data(
    corpus: TextCorpus, encoder: TextEncoder, columns: Sequence[Column], useless: dict[str, str], context: RunContext
) -> Data:
    """Return batches for training and the texts of the other splits; long texts are noted.

    Args:
        corpus: The texts, with the splits of the run.
        encoder: Encodes texts.
        columns: The further columns that are learned.
        useless: Column -> why it is not.
        context: The run.
    """
    spec = context.spec
    collate = Collate(encoder, corpus, spec.task, columns)

    def batches(items: Sequence[TextItem]) -> LoaderBatches:
        part = {"rank": context.rank, "world_size": context.world_size}
        return LoaderBatches(items, spec.train.batch_size, seed=spec.seed, collate=collate, **part)  # type: ignore[arg-type]

    train = corpus.splits["train"]
    long = encoder.truncated([item.text for item in train])
    if long:
        context.notes.append(f"{long:,} of {len(train):,} training texts are longer than {encoder.text_length} tokens")
    return Data(
        train=batches(train),
        validation=corpus.splits.get("validation"),
        test=corpus.splits.get("test"),
        held_out=batches(corpus.splits["held_out"]) if "held_out" in corpus.splits else None,
        meta={
            "sizes": {split: len(items) for split, items in corpus.splits.items()},
            "classes": list(corpus.classes),
            "columns": [column.as_json() for column in columns],
        },
        left_out=useless,
    )


def texts_for_words(corpus: TextCorpus, task: str) -> list[str]:
    """Return the training texts, with their targets where a model writes."""
    train = corpus.splits["train"]
    return [item.text for item in train] + [item.target for item in train if task == WRITING]
