"""The examples of a run: its data set or a synthetic sample of it, cut into splits. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from meltr.data.splits import Indices, limit_indices, split_indices
from meltr.errors import UserError
from meltr.progress import ProgressCounter
from meltr.specs import RunSpec
from meltr.video import miniature
from meltr.video.annotations import read
from meltr.video.corpus import Corpus, Item


def open_corpus(spec: RunSpec, *, quiet: bool = False) -> Corpus:
    """Read the data set of a run as published or, with ``sample``, its synthetic sample from the user's cache.

    If the sample is not in the cache yet, it is written, which takes seconds; a terminal shows the progress.

    Args:
        spec: The run.
        quiet: Show nothing; set on all ranks but the first (``context.rank > 0``).

    Raises:
        UserError: If both a sample and a folder are requested; see also `meltr.video.annotations.read` and
            `meltr.video.miniature.cached`.
    """
    root = spec.data_root
    if spec.sample and root is not None:
        raise UserError(
            f"--sample uses a synthetic sample of {spec.dataset}, but --data-root {root} was given too.",
            "Remove one of them.",
        )
    if spec.sample:
        with ProgressCounter(f"clips of the synthetic sample of {spec.dataset}", quiet=quiet, lines=False) as progress:
            root = miniature.cached(spec.dataset, progress=progress)
    return read(spec.dataset, spec.task, root, allow_missing=spec.data.allow_missing)


def cut(corpus: Corpus, spec: RunSpec) -> Corpus:
    """Return a corpus with the splits of a run: ``train``, ``validation``, ``test`` if there is one, ``held_out``.

    Validation is the data set's own split if it has one, else a part of training. The held-out part is cut only for
    ``bilevel.outer_batch=held_out``. All examples of a video go into one split. Limits keep the classes balanced.

    Args:
        corpus: The corpus, as read.
        spec: The run, with its ``data`` section.

    Raises:
        UserError: If nothing is left to train on.
    """
    train = corpus.splits["train"]
    parts = {} if "validation" in corpus.splits else {"validation": spec.data.validation}
    if spec.bilevel.outer_batch == "held_out":
        parts["held_out"] = spec.data.held_out
    splits = dict(corpus.splits)
    if parts:
        first = {item.media: item for item in reversed(train)}
        media = list(dict.fromkeys(item.media for item in train))
        labels = _classes([first[key] for key in media])
        cuts = split_indices(len(media), parts, seed=spec.data.split_seed, labels=labels)
        for name, indices in cuts.items():
            own = {media[index] for index in indices}
            splits[name] = tuple(item for item in train if item.media in own)
    limits = {"train": spec.data.train_limit, "validation": spec.data.eval_limit, "test": spec.data.eval_limit}
    for name, limit in limits.items():
        if name in splits:
            items = splits[name]
            kept = limit_indices(len(items), limit, seed=spec.data.split_seed, labels=_classes(items))
            splits[name] = tuple(items[index] for index in kept)
    return dataclasses.replace(corpus, splits={name: items for name, items in splits.items() if items})


def _classes(items: Sequence[Item]) -> Indices | None:
    """Return the class of every item as a number; None if items have no classes."""
    if not items or any(item.label is None for item in items):
        return None
    return np.unique([str(item.label) for item in items], return_inverse=True)[1].astype(np.int64)
