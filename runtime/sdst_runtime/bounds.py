"""The numbers that make sense: whoever gives one outside is told so, instead of waiting for memory that is not there.

Each is far beyond what anyone uses, so that it refuses mistakes and attacks and nothing else.
"""

from __future__ import annotations

from .errors import InputError

CLIP_S = (0.01, 3600.0)  # seconds a clip
DURATION_S = (1e-6, 1e7)  # of a video, 115 days
THREADS = (1, 1024)
BATCH = (1, 65_536)  # clips, sentences or samples at once
WORKERS = 1024  # at most
WIDTH = (1, 65_536)  # of features, models and pictures
COUNT = (1, 100_000)  # of layers, tokens, epochs and the like
SEED = (0, 2**63 - 1)  # what 64 bits hold, as torch takes it
ARRAY_BYTES = 1 << 30  # of one array in a compressed file: 28 hours of video in clips of 2 s, 4 layers of 1408


def require(name: str, value: float, bounds: tuple[float, float], unit: str = "") -> None:
    """Raise InputError unless a number lies within both bounds; NaN does not."""
    low, high = bounds
    if not low <= value <= high:
        shown = value if isinstance(value, float) or abs(value) < 1e20 else "a number of more than 20 digits"
        edge = "at least" if value < low else "at most" if value > high else f"{_number(low)} to"
        raise InputError(
            f"{name}: expected {edge} {_number(low if value < low else high)}{unit and ' ' + unit}, got {shown}"
        )


def _number(value: float) -> str:
    return f"{value:,d}" if isinstance(value, int) else f"{value:,g}"
