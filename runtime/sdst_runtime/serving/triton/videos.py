"""The encoded videos that an instance of sdst_ground keeps in memory: the second question about a file is cheap."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...contracts import EncodedVideo
from ...media.containers import source_digest


class RecentVideos:
    """Encoded videos of files, up to so many bytes of arrays; those that were not asked for longest go first.

    A file is known by its path and by what it holds (`source_digest`), so that one that was replaced is encoded again.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._videos: dict[Path, tuple[str, EncodedVideo]] = {}  # the least recently used first

    def get(self, path: Path, encode: Callable[[Path], EncodedVideo]) -> EncodedVideo:
        """The encoded video of a file, made by `encode` unless it is kept. Raises what `encode` does."""
        source = source_digest(path)
        kept = self._videos.pop(path, None)
        if kept is None or kept[0] != source:
            kept = source, encode(path)
            if not source or source_digest(path) != source:  # it was replaced while it was read
                return kept[1]
        self._videos[path] = kept
        while sum(video.size_bytes for _, video in self._videos.values()) > self._most_bytes:
            del self._videos[next(iter(self._videos))]
        return kept[1]
