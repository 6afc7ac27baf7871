"""The files of a frame cache and their content."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from meltr.errors import UserError, did_you_mean
from meltr.limits import UnreadableError, file_text, from_json
from meltr.video.frames.sampling import SAMPLERS

FORMAT = 1
"""Version of the layout on disk."""

HEADER, FAILED = "cache.json", "failed.jsonl"
SHOWN = 3
"""Number of names shown in a message."""

MAKE_AGAIN = "Make the cache again: delete its folder, then run `meltr data cache`."


@dataclass(frozen=True)
class CacheSettings:
    """How the frames of a cache are made.

    Args:
        frames: Frames per video.
        sampler: Selects the frames: a deterministic sampler of `meltr.video.frames.sampling.SAMPLERS`.
        size: Pixels of the shorter side; smaller pictures are not enlarged. None: no picture is resized.
        quality: Quality of the JPEG files, 1 to 95; None: raw pixels, without loss.

    Raises:
        UserError: If a value is out of range.
    """

    frames: int
    sampler: str = "centres"
    size: int | None = 224
    quality: int | None = 90

    def __post_init__(self) -> None:
        fixed = [name for name in SAMPLERS if name != "random"]
        if self.sampler not in fixed:
            raise UserError(f"sampler {self.sampler!r} cannot fill a cache", did_you_mean(self.sampler, fixed))
        if self.frames < 1:
            raise UserError(f"{self.frames} frames per video cannot be cached", "Give at least 1.")
        if self.size is not None and self.size < 1:
            raise UserError(f"pictures of {self.size} pixels cannot be cached", "Give at least 1.")
        if self.quality is not None and not 1 <= self.quality <= 95:
            raise UserError(f"there is no JPEG quality {self.quality}", "Choose 1 to 95, or raw pixels.")

    def text(self) -> str:
        """Return the settings in words."""
        size = "original size" if self.size is None else f"short side {self.size}"
        form = "raw pixels" if self.quality is None else f"JPEG quality {self.quality}"
        return f"{self.frames} frames per video ({self.sampler}), {size}, {form}"


class Entry(NamedTuple):
    """Position of the frames of a video.

    Args:
        shard: Number of the shard.
        spans: First byte and end of each frame in the shard; repeated frames share theirs.
        shape: Height and width of the pictures.
        source: Name and size in bytes of the file that was decoded.
    """

    shard: int
    spans: tuple[tuple[int, int], ...]
    shape: tuple[int, int]
    source: tuple[str, int]


def shard_path(folder: Path, number: int, ending: str) -> Path:
    """Return the file of a shard; `ending` is ``bin`` or ``json``."""
    return folder / f"shard-{number:05}.{ending}"


def read_settings(folder: Path) -> CacheSettings:
    """Return the settings of the cache in `folder`; UserError if there is none, or its format is another version."""
    try:
        content = from_json(file_text(folder / HEADER), folder / HEADER)
        version = content["format"]
        if version == FORMAT:
            return CacheSettings(**content["settings"])
    except OSError as error:
        hint = "Make one with `meltr data cache`, or use the folder of an existing one."
        raise UserError(f"{folder} is not a frame cache: {HEADER}: {error.strerror or error}.", hint)
    except UnreadableError as error:
        raise UserError(f"{folder / HEADER} is damaged: {error.problem}", MAKE_AGAIN)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder / HEADER} is damaged: {type(error).__name__}: {error}.", MAKE_AGAIN)
    raise UserError(f"{folder} is a frame cache of format {version}; this meltr reads {FORMAT}.", MAKE_AGAIN)


def read_entries(folder: Path) -> dict[str, Entry]:
    """Return every video of the finished shards of a cache.

    Raises:
        UserError: If a shard's size differs from its index, or an index is damaged.
    """
    entries: dict[str, Entry] = {}
    for index in sorted(folder.glob("shard-*.json")):
        number = int(index.stem.removeprefix("shard-"))
        try:
            content = from_json(file_text(index), index)
            size = shard_path(folder, number, "bin").stat().st_size
            if size != content["bytes"]:
                raise UserError(
                    f"{index.with_suffix('.bin')} has {size:,} bytes, not {content['bytes']:,}.", MAKE_AGAIN
                )
            for key, video in content["videos"].items():
                spans = tuple((start, stop) for start, stop in video["spans"])
                height, width = video["shape"]
                entries[key] = Entry(number, spans, (height, width), (video["file"], video["bytes"]))
        except UnreadableError as error:
            raise UserError(f"{index} or its shard is damaged: {error.problem}", MAKE_AGAIN)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{index} or its shard is damaged: {type(error).__name__}: {error}.", MAKE_AGAIN)
    return entries


def read_failed(folder: Path) -> dict[str, str]:
    """Return key -> reason of the files that could not be decoded; UserError if their list is damaged."""
    file = folder / FAILED
    if not file.is_file():
        return {}
    try:
        rows = [from_json(line, file) for line in file_text(file).splitlines()]
        return {str(row["key"]): str(row["reason"]) for row in rows}
    except UnreadableError as error:
        raise UserError(f"{file} is damaged: {error.problem}", MAKE_AGAIN)
    except (TypeError, KeyError) as error:
        raise UserError(f"{file} is damaged: {type(error).__name__}: {error}.", MAKE_AGAIN)


def changed(media: Mapping[str, Path], entries: Mapping[str, Entry]) -> Iterator[str]:
    """Yield the keys of `media` whose file differs in name or size from the one that was decoded."""
    for key, path in media.items():
        if key in entries and path.is_file() and entries[key].source != (path.name, path.stat().st_size):
            yield key


def named(keys: Iterable[str]) -> str:
    """Return the first few of `keys`, for a message."""
    listed = list(keys)
    return ", ".join(listed[:SHOWN]) + (", ..." if len(listed) > SHOWN else "")


def header(settings: CacheSettings) -> dict[str, Any]:
    """Return the content of ``cache.json``."""
    return {"format": FORMAT, "settings": asdict(settings)}
