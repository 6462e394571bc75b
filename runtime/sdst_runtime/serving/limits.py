"""What the server takes before it refuses, each with a default that fits one machine of a few cores."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ..errors import InputError


@dataclass(frozen=True)
class Limits:
    """Every limit of a server. Raises InputError for one that is not positive."""

    upload_mib: int = 512
    """Size of an uploaded file, in MiB."""
    video_s: float = 7200.0
    """Length of a video, in seconds."""
    sentences: int = 64
    """Sentences a request."""
    queue: int = 32
    """Questions that wait while one is answered; one more is refused with 429."""
    encodings: int = 1
    """Videos that are encoded at the same time."""
    uploads: int = 4
    """Videos that wait while others are encoded; one more is refused with 429."""
    receives: int = 16
    """Uploads that are received at the same time; one more is refused with 429."""
    receive_timeout_s: float = 300.0
    """Seconds in which an upload must have arrived."""
    receive_kib_s: float = 64.0
    """KiB a second that an upload must bring, over every 10 s; a slower one is cut off."""
    encode_timeout_s: float = 300.0
    """Seconds in which a video must be encoded, waiting included."""
    ask_timeout_s: float = 30.0
    """Seconds in which a question must be answered, waiting included."""
    memory_mib: int = 1024
    """Memory for encoded videos, in MiB: those not asked for longest go first."""
    age_s: float = 3600.0
    """Seconds that an encoded video is kept after its last question."""
    grace_s: float = 30.0
    """Seconds that requests have to end after SIGTERM."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 < value < 1e9:
                raise InputError(f"{field.name}: expected a number above 0 and below 1e9, got {value:g}")
