"""What may follow decoding: windows rounded, near-duplicates suppressed, only the best kept.

Shape letters: N queries, P predicted windows. Windows are seconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..data.annotations import Row
from ..errors import InputError
from .tables import Windows, predicted_windows

_ALL = 2**31


@dataclass(frozen=True)
class Postprocess:
    """Rounding, then suppression, then the best `max_windows`; each is off while it is None.

    Rounding comes first, as in the official baselines, so that no two windows of the result overlap by `nms`.
    Raises InputError naming the field that cannot be.
    """

    nms: float | None = None  # IoU with a better window from which on a window is dropped
    round_s: float | None = None  # starts and ends become multiples of it
    max_windows: int | None = None

    def __post_init__(self) -> None:
        if self.nms is not None and not 0 < self.nms <= 1:
            raise InputError(f"nms: expected an IoU above 0 and up to 1, got {self.nms}")
        if self.round_s is not None and not 0 < self.round_s < math.inf:
            raise InputError(f"round_s: expected a positive number of seconds, got {self.round_s}")
        if self.max_windows is not None and self.max_windows < 1:
            raise InputError(f"max_windows: expected at least 1, got {self.max_windows}")

    def __call__(self, rows: Sequence[Row], durations_s: Mapping[Any, float] | None = None) -> list[Row]:
        """The same prediction rows with other windows, best first unless only rounded; `rows` stay as they are.

        A window that rounds to nothing becomes the unit of round_s that holds its middle. Rounded ends stay within
        `durations_s` (by qid) where it is given. Raises InputError naming the qid whose windows cannot be read.
        """
        if not rows or (self.nms is self.round_s is self.max_windows is None):
            return list(rows)
        windows = predicted_windows(rows, _ALL)
        if self.round_s is not None:
            limits_s = [math.inf if durations_s is None else durations_s[row["qid"]] for row in rows]
            windows = _round(windows, self.round_s, np.array(limits_s)[:, None])
        if self.nms is not None or self.max_windows is not None:
            windows = _by_score(windows)
        if self.nms is not None:
            windows = _suppress(windows, self.nms)
        return [
            {**row, "pred_relevant_windows": kept[: self.max_windows]} for row, kept in zip(rows, _as_lists(windows))
        ]


def _round(windows: Windows, unit_s: float, limits_s: np.ndarray) -> Windows:
    """Half a unit rounds up; `limits_s` N 1."""
    start, end = np.floor(windows.start_s / unit_s + 0.5), np.floor(windows.end_s / unit_s + 0.5)
    last = np.maximum(np.ceil(limits_s / unit_s) - 1, 0)
    middle = np.minimum(np.floor((windows.start_s + windows.end_s) / 2 / unit_s), last)
    empty = start == end
    start, end = np.where(empty, middle, start), np.where(empty, middle + 1, end)
    return replace(windows, start_s=start * unit_s, end_s=np.minimum(end * unit_s, limits_s))


def _by_score(windows: Windows) -> Windows:
    """Best first; among equals the one listed first. Entries that are not there come last."""
    return _reorder(windows, np.argsort(np.where(windows.there, -windows.score, np.inf), axis=1, kind="stable"))


def _suppress(windows: Windows, nms: float) -> Windows:
    """Drop each window (best first) that overlaps a better one which itself stays."""
    there = windows.there.copy()
    for rank in range(there.shape[1]):
        worse = np.arange(there.shape[1]) > rank
        there &= ~(there[:, rank, None] & worse & (_iou_with(windows, rank) >= nms))
    return _reorder(replace(windows, there=there), np.argsort(~there, axis=1, kind="stable"))


def _iou_with(windows: Windows, rank: int) -> np.ndarray:
    """N P: of each window with the one at `rank`; 0 where both have no length."""
    start_s, end_s = windows.start_s[:, rank, None], windows.end_s[:, rank, None]
    shared = np.clip(np.minimum(windows.end_s, end_s) - np.maximum(windows.start_s, start_s), 0, None)
    union = (windows.end_s - windows.start_s) + (end_s - start_s) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _reorder(windows: Windows, order: np.ndarray) -> Windows:
    parts = (windows.start_s, windows.end_s, windows.score, windows.there)
    return Windows(*(np.take_along_axis(part, order, axis=1) for part in parts))


def _as_lists(windows: Windows) -> list[list[list[float]]]:
    table = np.stack((windows.start_s, windows.end_s, windows.score), axis=-1).tolist()
    return [row[:count] for row, count in zip(table, windows.there.sum(axis=1).tolist())]
