"""Find and read VIOLET's prepared files (frames, visual codes and texts) instead of the published data set.

The public repository tsujuifu/pytorch_violet keeps ``img_<name>.pkl``, ``txt_<task>.json`` and ``vq_<name>.pkl`` in one
folder ``_data``. mlvlab/MELTR has one folder per data set, with ``<name>_vq.pkl``, and for retrieval ``train_7k.json``,
``train_9k.json`` and ``test.json``. This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from meltr.video.annotations import layout as published_layout
from meltr.video.annotations.assembly import Draft, assemble, first
from meltr.video.annotations.layout import AnnotationFile
from meltr.video.annotations.parsing import malformed
from meltr.video.annotations.prepared import PreparedLayout, expected_files, find_files, layout_of
from meltr.video.corpus import Corpus
from meltr_violet.data.codes import PreparedCodes
from meltr_violet.data.prepared_frames import PreparedFrames
from meltr_violet.data.prepared_texts import captions, choices, questions


def _layout(dataset: str, name: str, task: str, texts: tuple[AnnotationFile, ...]) -> PreparedLayout:
    """Return the layout of a data set whose prepared files are named `name`."""
    frames = (f"img_{name}.pkl", f"{name}.pkl", f"img_{name}.tsv", f"{name}.tsv")
    return PreparedLayout(
        dataset=dataset,
        summary=f"Prepared files of VIOLET for {dataset}.",
        tasks=(task,),
        files=(
            AnnotationFile("frames", frames, "frames as JPEG (a .tsv with its .lineidx)"),
            *texts,
            AnnotationFile("codes", (f"{name}_vq.pkl", f"vq_{name}.pkl"), "visual codes, for the loss mvm", False),
        ),
        media=None,
        homepage="https://github.com/mlvlab/MELTR (violet/README.md)",
        folders=(".", name, f"_data/{name}", "_data", f"data/{name}", "data"),
    )


def _questions(dataset: str, name: str, task: str) -> PreparedLayout:
    text = AnnotationFile("text", (f"txt_{task}.json",), "questions and answers of all splits")
    return _layout(dataset, name, "qa", (text,))


def _retrieval(dataset: str, train: str) -> PreparedLayout:
    both = "txt_msrvtt-retrieval.json"
    texts = (
        AnnotationFile("train", (train, both), "captions for training"),
        AnnotationFile("test", ("test.json", both), "captions for the test"),
    )
    return _layout(dataset, "msrvtt", "retrieval", texts)


LAYOUTS = (
    _questions("msvd", "msvd", "msvd-qa"),
    _questions("tgif-action", "tgif", "tgif-action"),
    _questions("tgif-transition", "tgif", "tgif-transition"),
    _questions("tgif-frame", "tgif", "tgif-frame"),
    _retrieval("msrvtt-7k", "train_7k.json"),
    _retrieval("msrvtt-9k", "train_9k.json"),
)
"""Layouts of the data sets that have prepared files."""

CHOSEN = ("tgif-action", "tgif-transition")
"""Data sets whose questions have choices."""


@dataclass(frozen=True)
class Prepared:
    """A data set read from prepared files.

    Args:
        corpus: The examples; `meltr.video.corpus.Corpus.media` is empty.
        frames: The frames, by the key of the video.
        codes: The visual codes; None if there is no file of codes. Codes of some videos may be missing (`Corpus.notes`
            says so); `meltr_violet.data.codes.codes_or_ignored` handles that.
        files: Role (``frames``, ``codes``, ``text``, ``train``, ``test``) -> file that was read.
    """

    corpus: Corpus
    frames: PreparedFrames
    codes: PreparedCodes | None
    files: Mapping[str, Path]

    def text(self) -> str:
        """Return the files that were read, in one line."""
        return ", ".join(str(path) for path in dict.fromkeys(self.files.values()))


def find(dataset: str, task: str, root: Path | None, *, allow_missing: bool = False) -> Prepared | None:
    """Read a data set from the prepared files below `root`.

    Args:
        dataset: Name of the data set.
        task: Task that it is used for.
        root: Folder of the data set, or a folder with one subfolder per data set (``--data-root``); None: not given.
        allow_missing: Skip examples whose frames are missing instead of raising an error.

    Returns:
        The data set; None if it has no prepared files for that task, or if its frames or its texts are absent.

    Raises:
        UserError: If a file is malformed, files do not fit together, a split is empty, or frames are missing.
    """
    found = find_files(LAYOUTS, dataset, task, root)
    if found is None or root is None:
        return None
    layout, files = found
    frames = PreparedFrames(files["frames"])
    draft = _draft(dataset, files)
    places = {key: files["frames"] for key in draft.media_names() if key in frames}
    corpus = assemble(replace(draft, paths=places), layout, task=task, root=root, allow_missing=allow_missing)
    codes = PreparedCodes(files["codes"]) if "codes" in files else None
    notes = (*corpus.notes, *_other_size(corpus, files.get("train")))
    if codes is not None:
        notes += _lacking(codes, frames, draft.media_names())
    return Prepared(replace(corpus, media={}, notes=notes), frames, codes, files)


def find_codes(dataset: str, root: Path | None) -> PreparedCodes | None:
    """Return the prepared visual codes below `root`, for use with the published videos; None if there are none.

    The codes belong to five frames at ``centres`` in pictures of 224 pixels.

    Raises:
        UserError: If the file is malformed.
    """
    layout = layout_of(LAYOUTS, dataset)
    if layout is None or root is None or not root.is_dir():
        return None
    path = layout.find(root).get("codes")
    return None if path is None else PreparedCodes(path)


def expected(dataset: str, task: str) -> str:
    """Return the prepared files that `dataset` can have for `task`, one per line; empty if it can have none."""
    return expected_files(LAYOUTS, dataset, task)


def _draft(dataset: str, files: Mapping[str, Path]) -> Draft:
    if "text" not in files:
        return captions(files["train"], files["test"])
    return choices(files["text"]) if dataset in CHOSEN else questions(files["text"])


def _other_size(corpus: Corpus, train: Path | None) -> tuple[str, ...]:
    """Return a note if the number of training clips differs from the published one: data sets may share a file."""
    published = published_layout(corpus.dataset).published["train"]
    found = len(corpus.splits["train"])
    if train is None or found == published:
        return ()
    return (f"{train.name} has {found:,} training clips with frames; {corpus.dataset} has {published:,}.",)


def _lacking(codes: PreparedCodes, frames: PreparedFrames, keys: Iterable[str]) -> tuple[str, ...]:
    """Return a note on videos without codes; raise a UserError if codes and frames differ in the number of frames."""
    if codes.shape[0] != frames.count:
        raise malformed(
            codes.path,
            f"codes of {codes.shape[0]} frames per video, but {frames.path.name} has {frames.count}.",
            "Make the codes again from these frames: meltr data codes.",
        )
    wanted = [key for key in keys if key in frames]
    without = [key for key in wanted if key not in codes]
    if not without:
        return ()
    return (
        f"{codes.path.name} has no codes for {len(without):,} of {len(wanted):,} videos: {first(without)}. "
        "The loss mvm ignores these videos.",
    )
