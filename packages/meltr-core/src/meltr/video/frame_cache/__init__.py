"""The frame cache: frames decoded once, as JPEG or raw pixels in a few large files. Imports no torch.

A cache is a folder. ``cache.json`` says how its frames were made, ``failed.jsonl`` which files could not be decoded and
why. ``shard-00000.bin`` holds the pictures of some hundred videos one after the other, ``shard-00000.json`` where each
lies; the latter is written last, so that a shard without it does not exist.
"""

from meltr.video.frame_cache.layout import CacheSettings
from meltr.video.frame_cache.reader import CachedFrames, without_failed
from meltr.video.frame_cache.writer import fill_cache

__all__ = ["CacheSettings", "CachedFrames", "fill_cache", "without_failed"]
