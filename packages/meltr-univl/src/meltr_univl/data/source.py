"""Open the examples and features of a run: prepared files, annotations with features, or a synthetic sample."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import cast

from meltr.context import RunContext
from meltr.errors import UserError
from meltr.files import read_object
from meltr.folders.run_folder import RunFolder
from meltr.progress import ProgressCounter
from meltr.video import Corpus, Source, miniature
from meltr.video.annotations import layout_for, reader
from meltr.video.annotations.assembly import Draft, assemble
from meltr.video.annotations.layout import DatasetLayout, require_files, require_root
from meltr.video.corpora import open_corpus
from meltr_univl.data import prepared
from meltr_univl.features.files import FeatureFolder, open_features
from meltr_univl.features.reading import MAKE, FeatureSource, require
from meltr_univl.options import UnivlOptions

FOLDER = "features"
"""Folder of features below the data root that is used by default."""

EXTRACTOR, VERSION = "grid", 1
"""Extractor of the features of a synthetic sample, and its version, which is raised when the features change."""


@dataclass(frozen=True)
class FeatureLayout(DatasetLayout):
    """A data set whose videos need not be there, since their features are."""

    place: Path = Path()

    def media_place(self, root: Path) -> str:
        """Return where missing features belong."""
        return f"Their features belong in {self.place}, as KEY.npy."


def open_source(context: RunContext) -> Source:
    """Open the data set of a run.

    Raises:
        UserError: If there is none, or its features do not fit the settings.
    """
    spec, options = context.spec, cast(UnivlOptions, context.options)
    if spec.sample:
        corpus, features = _miniature(context)
    else:
        corpus, features = _prepared(context) or _published(context)
    require(features, width=options.video_dim, extractor=options.extractor)
    _check_as_trained(context, features)
    _check_readable(corpus, features)
    record = asdict(features.record)
    del record["failed"]
    rate = features.record.rate or options.feature_rate or 1.0
    meta = {"video_dim": features.record.width, "features": record | {"rate": rate}}
    return Source(corpus, features, meta=meta)


def _prepared(context: RunContext) -> tuple[Corpus, FeatureSource] | None:
    """Return the data set from UniVL's prepared files; None if there are none, or if other features were given."""
    spec, options = context.spec, cast(UnivlOptions, context.options)
    if not options.prepared or options.features is not None:
        return None
    found = prepared.find(spec.dataset, spec.task, spec.data_root, allow_missing=spec.data.allow_missing)
    if found is None:
        return None
    context.notes.append(f"prepared files: {found.text()}")
    return found.corpus, found.features


def _published(context: RunContext) -> tuple[Corpus, FeatureSource]:
    """Return the published annotations and the features of the videos. The videos themselves may be missing."""
    spec, options = context.spec, cast(UnivlOptions, context.options)
    layout, task = layout_for(spec.dataset, spec.task)
    root = require_root(layout, spec.data_root)
    files = require_files(layout, root)
    draft = reader(spec.dataset).draft(layout, task, files)
    path = options.features or _beside(root, draft)
    if options.features is None and not path.is_dir():
        raise UserError(
            f"{spec.dataset} needs features of its videos: --set features= was not given, and there is no {path}.",
            _ways(context),
        )
    features = open_features(path, extractor=options.extractor, rate=options.feature_rate)
    places = {key: place for key in draft.media_names() if (place := _place(features, key)) is not None}
    inherited = {each.name: getattr(layout, each.name) for each in fields(layout)}
    beside = FeatureLayout(**inherited, place=path)
    corpus = assemble(replace(draft, paths=places), beside, task=task, root=root, allow_missing=spec.data.allow_missing)
    return corpus, features


def _place(features: FeatureSource, key: str) -> Path | None:
    if isinstance(features, FeatureFolder):
        return features.file(key)
    return features.path if key in features else None


def _beside(root: Path, draft: Draft) -> Path:
    """Return the default location of the features: where the annotations name them, or in `FOLDER`."""
    folder = root.parent if root.is_file() else root
    return folder if all(name.endswith(".npy") for name in draft.media_names()) else folder / FOLDER


def _ways(context: RunContext) -> str:
    """Return the ways to get features, one per line."""
    spec = context.spec
    assert spec.data_root is not None
    folder = spec.data_root.parent if spec.data_root.is_file() else spec.data_root
    lines = [f"Make them: {MAKE} --dataset {spec.dataset} --data-root {spec.data_root} --out {folder / FOLDER}"]
    lines.append("Or give a folder of .npy files, a .pickle or a .npz: --set features=PATH")
    files = prepared.expected(spec.dataset, spec.task) if context.options.prepared else ""
    if files:
        lines.append("Or put UniVL's prepared files into the data root:")
        lines += [f"  {line}" for line in files.splitlines()]
    return "\n".join([*lines, "To run without any files: --sample."])


def _miniature(context: RunContext) -> tuple[Corpus, FeatureSource]:
    """Return the synthetic sample. Its features are computed on first use and kept in the user's cache."""
    from meltr_univl.features.extraction import Recipe, fill_features

    spec, quiet = context.spec, context.rank > 0
    corpus = open_corpus(spec, quiet=quiet)
    folder = miniature.cache_folder() / FOLDER / f"{miniature.cached(spec.dataset).name}-{EXTRACTOR}-v{VERSION}"
    with ProgressCounter(f"features of the synthetic sample of {spec.dataset}", quiet=quiet, lines=False) as progress:
        fill_features(corpus.media, folder, Recipe(EXTRACTOR), progress=progress)
    return corpus, FeatureFolder(folder)


def _check_as_trained(context: RunContext, features: FeatureSource) -> None:
    """Raise a UserError if a trained run gets features of another kind than it was trained with."""
    file = None if context.run_dir is None else RunFolder(context.run_dir).data
    if not context.weights_follow or file is None or not file.is_file():
        return
    try:
        trained = (read_object(file) or {})["meta"]["features"]
        kind = {"width": trained["width"], "extractor": trained["extractor"], "weights": trained["weights"]}
    except (KeyError, TypeError) as error:
        raise UserError(f"{file} does not describe the features of the run.", "It was changed.") from error
    require(features, **kind)


def _check_readable(corpus: Corpus, features: FeatureSource) -> None:
    """Read the features of the first example of each split, to report early what is wrong with all of them."""
    for items in corpus.splits.values():
        features.features(items[0].media)
