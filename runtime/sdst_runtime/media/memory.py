"""Frames in memory as a stream of clips: sampled by the same rule as those of a file (clips.py).

Shapes: N frames of H x W pixels, uint8 [N, H, W, 3], RGB. Time is in seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..contracts import FeatureSpec
from ..errors import InputError, require_package
from .clips import ClipStream
from .frames import Shown

NAME = "the frames"  # what messages call them
NOTHING_CUT = (0, 0, 0, 0)
MOST_GAP_S = 3600.0  # between two frames: a longer one is a mistake in the unit


class FrameStream(ClipStream):
    """`ClipStream` of frames that are shown from their timestamps on; the last one as long as the mean of the others.

    Time 0 is the first timestamp. Raises InputError for arrays that do not fit together.
    """

    def __init__(self, frames: np.ndarray, timestamps_s: Sequence[float] | np.ndarray, spec: FeatureSpec) -> None:
        super().__init__(NAME, spec)
        self._frames, self._times_s = frames, _checked_times(frames, timestamps_s)

    def _shown(self) -> Iterator[Shown]:
        av: Any = require_package("av", "")
        ends_s = [*self._times_s[1:], self._times_s[-1] * (1 + 1 / (len(self._times_s) - 1))]
        for i, (picture, end_s) in enumerate(zip(self._frames, ends_s, strict=True)):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            yield Shown(frame, float(end_s), i == len(self._frames) - 1, 1.0, NOTHING_CUT)


def _checked_times(frames: np.ndarray, timestamps_s: Sequence[float] | np.ndarray) -> np.ndarray:
    """Seconds from the first frame, float64."""
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
        raise InputError(
            f"frames: expected uint8 [N, H, W, 3] in RGB, got {frames.dtype} {list(frames.shape)}; convert them"
        )
    try:
        times_s = np.asarray(timestamps_s, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"timestamps_s: expected a number of seconds for each frame ({error})") from error
    if times_s.shape != (len(frames),) or len(frames) < 2:
        raise InputError(
            f"timestamps_s: expected one for each of two frames or more, got {list(times_s.shape)} for {len(frames)}"
        )
    steps_s = np.diff(times_s)
    if not np.isfinite(times_s).all() or (steps_s <= 0).any() or (steps_s > MOST_GAP_S).any():
        raise InputError(
            f"timestamps_s: expected finite seconds that rise by at most {MOST_GAP_S:g} from frame to frame; sort them,"
            " and give seconds"
        )
    return times_s - times_s[0]
