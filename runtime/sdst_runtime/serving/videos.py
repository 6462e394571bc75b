"""The encoded videos that a server keeps, within a budget of memory and of age."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .counters import Counters
from .messages import Encoded
from .refusals import Refusal


@dataclass
class KeptVideo:
    """One encoded video: it lies in the model's memory and in a file."""

    name: str  # what a client calls it; nobody can guess it
    file: Path
    encoded: Encoded
    used_s: float  # when it was last asked for


class EncodedVideos:
    """The videos by name; those that were not asked for longest go first."""

    def __init__(
        self, folder: Path, most_bytes: int, age_s: float, forget: Callable[[tuple[Path, ...]], None],
        counters: Counters, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """`forget` hears of files that are gone."""
        self._folder, self._most_bytes, self._age_s = folder, most_bytes, age_s
        self._forget, self._counters, self._clock = forget, counters, clock
        self._videos: dict[str, KeptVideo] = {}  # the least recently used first

    def place(self) -> tuple[str, Path]:
        """A new name, and the file that belongs to it."""
        name = secrets.token_urlsafe(12)
        return name, self._folder / f"{name}.safetensors"

    def add(self, name: str, file: Path, encoded: Encoded) -> KeptVideo:
        """Keep a video. Raises Refusal when it is larger than the whole budget."""
        if encoded.size_bytes > self._most_bytes:
            self.drop(file)
            raise Refusal(
                "video_too_long",
                f"the encoded video takes {encoded.size_bytes / 2**20:.0f} MiB, expected at most "
                f"{self._most_bytes / 2**20:.0f}; give a shorter one",
            )
        self._videos[name] = KeptVideo(name, file, encoded, self._clock())
        while self._bytes() > self._most_bytes:
            self._remove([next(iter(self._videos.values()))])
        self._count()
        return self._videos[name]

    def get(self, name: str) -> KeptVideo:
        """A video, which is now the last one used. Raises Refusal when it is not kept, or no longer."""
        self.expire()
        video = self._videos.pop(name, None)
        if video is None:
            raise Refusal(
                "video_unknown",
                f"no video {name[:40]!r}: it was never here, or expired {self._age_s:g} s after its last question, or "
                "made room for others; send it again",
            )
        video.used_s = self._clock()
        self._videos[name] = video
        return video

    def expire(self) -> None:
        """Drop the videos that nobody asked for too long."""
        oldest_s = self._clock() - self._age_s
        old = [video for video in self._videos.values() if video.used_s < oldest_s]
        if old:
            self._remove(old)
            self._count()

    def drop(self, file: Path) -> None:
        """Remove what was encoded and is not kept."""
        file.unlink(missing_ok=True)
        self._forget((file,))

    def _bytes(self) -> int:
        return sum(video.encoded.size_bytes for video in self._videos.values())

    def _remove(self, videos: list[KeptVideo]) -> None:
        for video in videos:
            self._videos.pop(video.name, None)
            video.file.unlink(missing_ok=True)
        self._forget(tuple(video.file for video in videos))

    def _count(self) -> None:
        self._counters.videos.set(len(self._videos))
        self._counters.video_bytes.set(self._bytes())
