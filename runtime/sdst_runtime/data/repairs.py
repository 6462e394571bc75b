"""What is mended in annotations and features, and how often: nothing is mended in silence.

Windows are [start, end] in seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

Window = tuple[float, float]  # start, end, seconds


@dataclass(frozen=True)
class Count:
    """How often something was mended, and where first."""

    number: int = 0
    example: str = ""  # "qid 7" or "video abc"

    def __add__(self, other: Count) -> Count:
        return Count(self.number + other.number, self.example or other.example)


@dataclass(frozen=True)
class Repairs:
    """Counts of every repair; they add up with `+`."""

    reversed: Count = Count()  # windows that ended before they began: swapped
    outside: Count = Count()  # windows that left the video: clamped to it
    empty: Count = Count()  # windows shorter than a clip: widened to one
    overlapping: Count = Count()  # windows that overlapped another of their query: merged into it
    clips_outside: Count = Count()  # scored clips that the video does not have: left out
    longer: Count = Count()  # videos whose features go on after the annotated duration: cut
    shorter: Count = Count()  # videos whose features end a little early: windows cut to what they cover

    def __add__(self, other: Repairs) -> Repairs:
        if other == _NOTHING:  # as nearly always
            return self
        return Repairs(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def lines(self) -> list[str]:
        """A sentence for each kind of repair that was made."""
        counts = ((getattr(self, f.name), _SENTENCES[f.name]) for f in fields(self))
        return [
            f"{sentence.format(count.number)} (first: {count.example})" for count, sentence in counts if count.number
        ]


_NOTHING = Repairs()
_SENTENCES = {
    "reversed": "windows that ended before they began: {}, swapped",
    "outside": "windows that leave their video: {}, clamped to it for training",
    "empty": "windows shorter than a clip: {}, widened to one for training",
    "overlapping": "windows that overlap another of their query: {}, merged for training",
    "clips_outside": "scored clips outside their video: {}, left out of training",
    "longer": "videos with features beyond their annotated duration: {}, cut to it",
    "shorter": "videos with features that end a little early: {}, windows cut to what they cover for training",
}


def swapped(windows: Iterable[Sequence[float]]) -> list[Window]:
    """Windows whose start comes before their end, in the order given."""
    return [(min(window), max(window)) for window in windows]


def mend_windows(
    windows: Sequence[Sequence[float]], *, duration_s: float, covered_s: float, clip_s: float, source: str
) -> tuple[list[Window], Repairs]:
    """Windows to train on: inside what the clips cover, sorted, each a clip wide at least, and what was mended.

    Reversed windows are swapped, then clamped to [0, min(duration_s, covered_s)], merged where they overlap (not where
    they touch) and widened about their centre; a narrow one may then end with its clip, after `duration_s`. `source`
    names the query in the counts. `covered_s` is clip_s times a whole number of clips, 1 or more.
    """
    ordered = swapped(windows)
    end_s = min(duration_s, covered_s)
    merged = _merged([(_between(start, 0, end_s), _between(end, 0, end_s)) for start, end in ordered])
    counts = {
        "reversed": sum(start > end for start, end in windows),
        "outside": sum(start < 0 or end > duration_s for start, end in ordered),
        "empty": sum(end - start < clip_s for start, end in merged),
        "overlapping": len(ordered) - len(merged),
    }
    repairs = Repairs(**{name: Count(number, source) for name, number in counts.items() if number})
    return [_widened(window, clip_s, covered_s) for window in merged], repairs


def _between(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _merged(windows: Iterable[Window]) -> list[Window]:
    merged: list[Window] = []
    for start, end in sorted(set(windows)):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _widened(window: Window, clip_s: float, covered_s: float) -> Window:
    start, end = window
    if end - start >= clip_s:
        return window
    start = _between((start + end - clip_s) / 2, 0, covered_s - clip_s)
    return start, min(start + clip_s, covered_s)
