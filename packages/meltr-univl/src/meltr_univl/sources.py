"""Where the examples and the features of a run come from: prepared files, annotations beside features, a miniature."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import cast

from meltr.context import RunContext
from meltr.errors import UserError
from meltr.folders.run_folder import RunFolder
from meltr.progress import Counter
from meltr.video import miniature
from meltr.video.annotations import layout_for, reader
from meltr.video.annotations.assembly import Draft, assemble
from meltr.video.annotations.layout import Layout, require_files, require_root
from meltr.video.corpora import open_corpus
from meltr.video.corpus import Corpus
from meltr_univl import prepared
from meltr_univl.feature_files import FeatureFolder, open_features
from meltr_univl.features import MAKE, FeatureSource, require
from meltr_univl.options import UnivlOptions

FOLDER = "features"
"""Below the data root: features that are used without being named."""

EXTRACTOR, VERSION = "grid", 1
"""What makes the features of miniatures; the number is raised whenever it makes others."""


@dataclass(frozen=True)
class Source:
    """A data set as found.

    Args:
        corpus: Its examples.
        features: Their features.
        rate: Vectors a second.
    """

    corpus: Corpus
    features: FeatureSource
    rate: float


@dataclass(frozen=True)
class FeatureLayout(Layout):
    """A data set whose videos need not be there, since their features are."""

    place: Path = Path()

    def media_place(self, root: Path) -> str:
        """Return where missing features belong."""
        return f"Their features belong in {self.place}, as KEY.npy."


def open_source(context: RunContext) -> Source:
    """Return the data set of a run.

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
    return Source(corpus, features, features.record.rate or options.feature_rate or 1.0)


def _prepared(context: RunContext) -> tuple[Corpus, FeatureSource] | None:
    """Return UniVL's prepared files; None where there are none, or other features were named."""
    spec, options = context.spec, cast(UnivlOptions, context.options)
    if not options.prepared or options.features is not None:
        return None
    found = prepared.find(spec.dataset, spec.task, spec.data_root, allow_missing=spec.data.allow_missing)
    if found is None:
        return None
    context.notes.append(f"prepared files: {found.text()}")
    return found.corpus, found.features


def _published(context: RunContext) -> tuple[Corpus, FeatureSource]:
    """Return the annotations as published and the features of their videos, which need not be there themselves."""
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
    """Return where the features are if nobody says so: where the annotations name them, or in `FOLDER`."""
    folder = root.parent if root.is_file() else root
    return folder if all(name.endswith(".npy") for name in draft.media_names()) else folder / FOLDER


def _ways(context: RunContext) -> str:
    """Return how to come by features."""
    spec = context.spec
    assert spec.data_root is not None
    folder = spec.data_root.parent if spec.data_root.is_file() else spec.data_root
    lines = [f"Make them: {MAKE} --dataset {spec.dataset} --data-root {spec.data_root} --out {folder / FOLDER}"]
    lines.append("Or give a folder of .npy files, a .pickle or a .npz: --set features=PATH")
    files = prepared.expected(spec.dataset, spec.task) if context.options.prepared else ""
    if files:
        lines.append("Or put UniVL's prepared files into the data root:")
        lines += [f"  {line}" for line in files.splitlines()]
    return "\n".join([*lines, "Without any files: --sample."])


def _miniature(context: RunContext) -> tuple[Corpus, FeatureSource]:
    """Return the miniature of the data set, its features made on the spot and kept in the user's cache."""
    from meltr_univl.feature_extraction import Recipe, fill_features

    spec, quiet = context.spec, context.rank > 0
    corpus = open_corpus(spec, quiet=quiet)
    folder = miniature.cache_folder() / FOLDER / f"{miniature.cached(spec.dataset).name}-{EXTRACTOR}-v{VERSION}"
    with Counter(f"features of the miniature of {spec.dataset}", quiet=quiet, lines=False) as progress:
        fill_features(corpus.media, folder, Recipe(EXTRACTOR), progress=progress)
    return corpus, FeatureFolder(folder)


def _check_as_trained(context: RunContext, features: FeatureSource) -> None:
    """Check that a trained run is given features of the kind that it was trained with; UserError if not."""
    file = None if context.run_dir is None else RunFolder(context.run_dir).data
    if not context.weights_follow or file is None or not file.is_file():
        return
    trained = json.loads(file.read_text(encoding="utf-8"))["meta"]["features"]
    require(features, width=trained["width"], extractor=trained["extractor"], weights=trained["weights"])


def _check_readable(corpus: Corpus, features: FeatureSource) -> None:
    """Read the features of the first example of each split: what is wrong with all of them should be said at once."""
    for items in corpus.splits.values():
        features.features(items[0].media)
