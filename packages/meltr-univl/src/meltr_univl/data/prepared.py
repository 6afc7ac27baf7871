"""Find and read UniVL's prepared files (annotations and features) instead of the published data set.

The files come from the release of microsoft/UniVL (``youcookii.zip``, ``msrvtt.zip``) and from mlvlab/MELTR, folder
``univl``. This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from meltr.video.annotations.assembly import assemble
from meltr.video.annotations.layout import AnnotationFile
from meltr.video.annotations.prepared import PreparedLayout, expected_files, find_files
from meltr.video.corpus import Corpus
from meltr_univl.data.prepared_texts import READERS
from meltr_univl.features.files import FeaturePickle
from meltr_univl.features.reading import PUBLISHED

YOUCOOK = (
    AnnotationFile("train", ("youcookii_train.csv",), "video_id and feature_file of the training videos"),
    AnnotationFile("test", ("youcookii_val.csv",), "the same for the validation videos, which are the test set"),
    AnnotationFile(
        "data",
        ("youcookii_data.transcript.pickle", "youcookii_data.pickle", "youcookii_data.no_transcript.pickle"),
        "segments, captions and transcripts",
    ),
    AnnotationFile("features", ("youcookii_videos_features.pickle",), "S3D features, one vector per second"),
)

MSRVTT_DATA = AnnotationFile("data", ("MSRVTT_data.json",), "all captions and the list of videos in their order")
MSRVTT_TEST = AnnotationFile("test", ("MSRVTT_JSFUSION_test.csv",), "the 1,000 test clips, each with one caption")
MSRVTT_TRAIN = AnnotationFile("train", ("MSRVTT_train.9k.csv",), "names of the 9,000 training clips")
MSRVTT_FEATURES = AnnotationFile("features", ("msrvtt_videos_features.pickle",), "S3D features, one vector per second")


def _layout(dataset: str, tasks: tuple[str, ...], files: tuple[AnnotationFile, ...]) -> PreparedLayout:
    name = "youcookii" if dataset == "youcook2" else "msrvtt"
    return PreparedLayout(
        dataset=dataset,
        summary=f"Prepared files of UniVL for {dataset}.",
        tasks=tasks,
        files=files,
        media=None,
        stands_for_videos="features",
        homepage="https://github.com/microsoft/UniVL (README, Prepare for Evaluation)",
        folders=(".", name, f"data/{name}", "data"),
    )


LAYOUTS = (
    _layout("youcook2", ("retrieval", "captioning"), YOUCOOK),
    _layout("msrvtt-7k", ("retrieval",), (MSRVTT_DATA, MSRVTT_TEST, MSRVTT_FEATURES)),
    _layout("msrvtt-9k", ("retrieval",), (MSRVTT_TRAIN, MSRVTT_DATA, MSRVTT_TEST, MSRVTT_FEATURES)),
    _layout("msrvtt-full", ("captioning",), (MSRVTT_DATA, MSRVTT_FEATURES)),
)
"""Layouts of the data sets that have prepared files."""


@dataclass(frozen=True)
class Prepared:
    """A data set read from prepared files.

    Args:
        corpus: The examples; `meltr.video.corpus.Corpus.media` is empty.
        features: The features, by the key of the video.
        files: Role (``features``, ``data``, ``train``, ``test``) -> file that was read.
    """

    corpus: Corpus
    features: FeaturePickle
    files: Mapping[str, Path]

    def text(self) -> str:
        """Return the files that were read, in one line."""
        return ", ".join(str(path) for path in self.files.values())


def find(dataset: str, task: str, root: Path | None, *, allow_missing: bool = False) -> Prepared | None:
    """Read a data set from the prepared files below `root`.

    Args:
        dataset: Name of the data set.
        task: Task that it is used for.
        root: Folder of the data set, or a folder with one subfolder per data set (``--data-root``); None: not given.
        allow_missing: Skip examples whose features are missing instead of raising an error.

    Returns:
        The data set; None if it has no prepared files for that task, or if one of them is absent.

    Raises:
        UserError: If a file is malformed, files do not fit together, a split is empty, or features are missing.
    """
    found = find_files(LAYOUTS, dataset, task, root)
    if found is None or root is None:
        return None
    layout, files = found
    features = FeaturePickle(files["features"], extractor=PUBLISHED, rate=1.0)
    draft = READERS[dataset](files)
    places = {key: files["features"] for key in draft.media_names() if key in features}
    corpus = assemble(replace(draft, paths=places), layout, task=task, root=root, allow_missing=allow_missing)
    return Prepared(replace(corpus, media={}), features, files)


def expected(dataset: str, task: str) -> str:
    """Return the prepared files that `dataset` can have for `task`, one per line; empty if it can have none."""
    return expected_files(LAYOUTS, dataset, task)
