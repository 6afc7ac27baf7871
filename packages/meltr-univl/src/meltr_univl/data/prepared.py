"""UniVL's prepared files in place of a data set as published: annotations and features. Imports no torch.

Those of the release of microsoft/UniVL (``youcookii.zip``, ``msrvtt.zip``) and of mlvlab/MELTR, folder ``univl``.
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
    AnnotationFile("test", ("youcookii_val.csv",), "the same of the validation videos, which are the test"),
    AnnotationFile(
        "data",
        ("youcookii_data.transcript.pickle", "youcookii_data.pickle", "youcookii_data.no_transcript.pickle"),
        "segments, captions and transcripts",
    ),
    AnnotationFile("features", ("youcookii_videos_features.pickle",), "S3D features, a vector a second"),
)

MSRVTT_DATA = AnnotationFile("data", ("MSRVTT_data.json",), "the list of videos, whose order counts, and all captions")
MSRVTT_TEST = AnnotationFile("test", ("MSRVTT_JSFUSION_test.csv",), "the 1,000 test clips, a caption each")
MSRVTT_TRAIN = AnnotationFile("train", ("MSRVTT_train.9k.csv",), "names of the 9,000 training clips")
MSRVTT_FEATURES = AnnotationFile("features", ("msrvtt_videos_features.pickle",), "S3D features, a vector a second")


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
"""The data sets that there are prepared files of."""


@dataclass(frozen=True)
class Prepared:
    """A data set in prepared files.

    Args:
        corpus: Its examples; `meltr.video.corpus.Corpus.media` is empty.
        features: Its features by the key of the video.
        files: Role (``features``, ``data``, ``train``, ``test``) -> file that was read.
    """

    corpus: Corpus
    features: FeaturePickle
    files: Mapping[str, Path]

    def text(self) -> str:
        """Return which files were read, in one line."""
        return ", ".join(str(path) for path in self.files.values())


def find(dataset: str, task: str, root: Path | None, *, allow_missing: bool = False) -> Prepared | None:
    """Return the data set in prepared files below `root`.

    Args:
        dataset: Its name.
        task: What it is wanted for.
        root: The folder of the data set, or one with a folder of each (``--data-root``); None: it was not given.
        allow_missing: Leave out examples whose features are not there, instead of refusing.

    Returns:
        None where there are no prepared files of that data set and task, or one of them is absent.

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
    """Return which prepared files there could be, a line each; empty where there are none of `dataset` and `task`."""
    return expected_files(LAYOUTS, dataset, task)
