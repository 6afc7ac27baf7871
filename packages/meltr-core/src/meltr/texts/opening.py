"""The texts of a run, and its splits."""

from __future__ import annotations

from dataclasses import replace

from meltr.data.splits import limit_indices, split_indices
from meltr.errors import UserError
from meltr.specs import RunSpec
from meltr.texts import sample, tables
from meltr.texts.corpus import TextCorpus
from meltr.texts.names import LABEL, TARGET, WRITING


def open_texts(spec: RunSpec) -> TextCorpus:
    """Return the texts of a run's folder or file or, with ``sample``, a synthetic sample.

    Texts of the task ``text-to-text`` have targets, those of others a class each.

    Raises:
        UserError: If neither is given, both are, or the tables are not valid.
    """
    if spec.sample and spec.data_root is not None:
        message = f"--sample uses synthetic texts, but --data-root {spec.data_root} was given too"
        raise UserError(message, "Remove one of them.")
    if spec.sample:
        return sample.sample(targets=spec.task == WRITING)
    if spec.data_root is None:
        raise UserError("the texts need --data-root DIR", f"DIR must hold:\n{tables.LAYOUT}Or try --sample.")
    return tables.read(spec.data_root, answer=TARGET if spec.task == WRITING else LABEL)


def cut(corpus: TextCorpus, spec: RunSpec) -> TextCorpus:
    """Return a corpus with the splits of a run: validation and a held-out part are cut from train if they are needed.

    Every class is represented in each part as in train. Limits (``data.train_limit``, ``data.eval_limit``) apply last.

    Args:
        corpus: The texts, as read.
        spec: The run, with its ``data`` section.

    Raises:
        UserError: If nothing is left to train on.
    """
    train = corpus.splits["train"]
    labels = [corpus.index_of(item.label) for item in train] if corpus.classes else None
    parts = {} if "validation" in corpus.splits else {"validation": spec.data.validation}
    if spec.bilevel.outer_batch == "held_out":
        parts["held_out"] = spec.data.held_out
    splits = dict(corpus.splits)
    if parts:
        cuts = split_indices(len(train), parts, seed=spec.data.split_seed, labels=labels)
        splits |= {name: tuple(train[index] for index in indices) for name, indices in cuts.items()}
    for name in splits:
        limit = {"train": spec.data.train_limit, "held_out": None}.get(name, spec.data.eval_limit)
        items = splits[name]
        own = [corpus.index_of(item.label) for item in items]
        kept = limit_indices(
            len(items), limit, seed=spec.data.split_seed, labels=own if min(own, default=0) >= 0 else None
        )
        splits[name] = tuple(items[index] for index in kept)
    return replace(corpus, splits={name: items for name, items in splits.items() if items})
