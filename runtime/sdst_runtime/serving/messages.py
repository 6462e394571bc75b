"""What the server and the process of its model say to each other; all of it is pickled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias


@dataclass(frozen=True)
class Encode:
    """Encode a video file and keep it, also as the file `kept`. The answer is an Encoded."""

    path: Path
    name: str  # what messages call the video
    kept: Path
    longest_s: float


@dataclass(frozen=True)
class Ask:
    """Answer sentences about a kept video. The answer is the JSON of `sdst ground`, in which it is called `name`."""

    kept: Path
    name: str
    sentences: tuple[str, ...]
    threshold: float | None = None  # of the presence


@dataclass(frozen=True)
class Probe:
    """Run every model on a small input. The answer is None."""


@dataclass(frozen=True)
class Forget:
    """Drop kept videos from memory; their files are the sender's to remove. There is no answer."""

    kept: tuple[Path, ...]


@dataclass(frozen=True)
class Cancel:
    """Stop encoding at the next piece of clips. There is no answer of its own."""

    number: int


Work: TypeAlias = Encode | Ask | Probe


@dataclass(frozen=True)
class Encoded:
    """What is known of an encoded video."""

    duration_s: float
    clip_s: float
    clips: int
    size_bytes: int  # in memory
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Fault:
    """Work that could not be done; `code` is one of refusals.STATUS."""

    code: str
    message: str


@dataclass(frozen=True)
class Reply:
    """The answer to the work of this number, and the seconds of each stage since the last reply."""

    number: int
    value: Encoded | str | Fault | None
    seconds: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Ready:
    """The first message: the models are loaded and have answered a probe."""


@dataclass(frozen=True)
class Unusable:
    """The first message instead: the bundle cannot be used, and why."""

    reason: str
