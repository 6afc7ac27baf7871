"""The conformance classes for a backbone of `meltr.video`, on a small synthetic sample of one of its data sets."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from meltr.context import PredictRequest
from meltr.plugins import Registry
from meltr.specs import RunSpec
from meltr.testing import BackboneConformance
from meltr.video import miniature
from meltr.video.corpora import open_corpus

SPLITS: Mapping[str, int] = {"train": 10, "validation": 4, "test": 6}
"""Clips of the sample by split."""


class VideoConformance(BackboneConformance):
    """All tests of the contract on a synthetic sample of ten training clips.

    Args:
        sizes: Split -> number of clips, for the splits that the data set has.
    """

    sizes: ClassVar[Mapping[str, int]] = SPLITS

    @classmethod
    def make_spec(cls, registry: Registry, **others: Any) -> RunSpec:
        """Return the description of the run, with ``sample``; see `meltr.testing.Case.make_spec`."""
        return super().make_spec(registry, **{"sample": True, "train__batch_size": 4, **others})

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _sample(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
        """Write the sample where ``--sample`` looks for it, once for all classes with these sizes."""
        base = tmp_path_factory.getbasetemp()
        common = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MELTR_CACHE", str(base / "meltr-conformance"))
            dataset = cls.dataset or ""
            kept = common / ("samples" if cls.sizes == SPLITS else f"samples-{'-'.join(map(str, cls.sizes.values()))}")
            folder = miniature.cache_folder() / "miniature" / f"{dataset}-0-v{miniature.VERSION}"
            if dataset in miniature.DATASETS and not folder.is_dir():
                shutil.copytree(_written(dataset, kept / dataset, cls.sizes), folder)
            yield

    @classmethod
    def requests(cls, spec: RunSpec) -> Sequence[PredictRequest]:
        """Return a question, a search, or just files, as the task wants it."""
        corpus = open_corpus(spec, quiet=True)
        items = corpus.splits["test"]
        media = dict.fromkeys(corpus.media[item.media] for item in items)
        request = PredictRequest(media=tuple(Path(file) for file in media)[:3], top=2)
        if spec.task == "qa":
            return [dataclasses.replace(request, question=items[0].question, choices=items[0].choices)]
        return [dataclasses.replace(request, search=items[0].captions[0])] if spec.task == "retrieval" else [request]


def _written(dataset: str, folder: Path, sizes: Mapping[str, int]) -> Path:
    """Write a small sample into `folder`, which the processes of pytest-xdist share, unless it is there."""
    splits = miniature.splits_of(dataset)
    try:
        if not folder.is_dir():
            miniature.write(dataset, folder, sizes={split: sizes[split] for split in splits})
    except Exception:
        if not folder.is_dir():  # Otherwise another process was faster and wrote the same.
            raise
    return folder
