"""Everything about video and language: annotations, frames, texts, tasks, and the base class of video backbones.

The names below are loaded on first use, so that registration imports no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meltr.video.adapter.base import VideoAdapter as VideoAdapter
    from meltr.video.adapter.encoder import Encoder as Encoder
    from meltr.video.adapter.encoder import Labels as Labels
    from meltr.video.adapter.source import Source as Source
    from meltr.video.adapter.splits import Split as Split
    from meltr.video.corpus import Corpus as Corpus
    from meltr.video.corpus import Item as Item

_HOME = {
    "VideoAdapter": "meltr.video.adapter.base",
    "Encoder": "meltr.video.adapter.encoder",
    "Labels": "meltr.video.adapter.encoder",
    "Source": "meltr.video.adapter.source",
    "Split": "meltr.video.adapter.splits",
    "Corpus": "meltr.video.corpus",
    "Item": "meltr.video.corpus",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'meltr.video' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__]
