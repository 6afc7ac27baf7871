"""UniVL's prepared files, written as its release has them."""

from __future__ import annotations

import csv
import pickle
from pathlib import Path
from typing import Any

import numpy as np

WIDTH = 6
SEGMENTS = {
    "v1": [(0.08, 4.96, "spread margarine", "okay so now"), (7.0, 17.5, "cut the bread", "NONE")],
    "v2": [(0.0, 3.0, "mix", "")],
    "v3": [(2.0, 2.0, "fry the egg", "hello")],
}
"""Video -> start, end, caption, transcript."""


def objects(values: list[Any]) -> Any:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def write_features(path: Path, keys: list[str]) -> None:
    arrays = {key: np.full((30, WIDTH), float(number)) for number, key in enumerate(keys)}
    path.write_bytes(pickle.dumps(arrays))


def write_csv(path: Path, header: list[str], rows: list[list[str]]) -> None:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])


def youcook_data(segments: dict[str, list[tuple[float, float, str, str]]] | None = None) -> dict[str, Any]:
    names = ("start", "end", "text", "transcript")
    return {
        video: {name: objects([row[number] for row in rows]) for number, name in enumerate(names)}
        for video, rows in (segments or SEGMENTS).items()
    }


def write_youcook(folder: Path, data: Any = None, protocol: int = 4) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, videos in (("train", ["v2", "v1"]), ("val", ["v3"])):
        write_csv(folder / f"youcookii_{name}.csv", ["video_id", "feature_file"], [[v, v] for v in videos])
    content = youcook_data() if data is None else data
    (folder / "youcookii_data.pickle").write_bytes(pickle.dumps(content, protocol=protocol))
    write_features(folder / "youcookii_videos_features.pickle", list(SEGMENTS))
    return folder
