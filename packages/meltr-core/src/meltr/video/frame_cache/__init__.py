"""The frame cache: frames decoded once, as JPEG or raw pixels in a few large files. Imports no torch.

A cache is a folder. ``cache.json`` describes how its frames were made, and ``failed.jsonl`` lists the files that could
not be decoded, with reasons. ``shard-00000.bin`` holds the pictures of several hundred videos one after the other, and
``shard-00000.json`` their positions. The latter is written last, so a shard without it does not count.
"""

from meltr.video.frame_cache.layout import CacheSettings
from meltr.video.frame_cache.reader import CachedFrames, without_failed
from meltr.video.frame_cache.writer import fill_cache

__all__ = ["CacheSettings", "CachedFrames", "fill_cache", "without_failed"]
