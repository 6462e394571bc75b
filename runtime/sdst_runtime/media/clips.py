"""Video files in, clips of pictures out: decoding by presentation timestamp.

Time 0 is the first frame's timestamp. Clip k covers [k * clip_s, (k + 1) * clip_s); its samples are the middles of
`frames_per_clip` equal intervals. A sample takes the frame on screen at that time, the last one whose timestamp is
not later; after the last frame its picture stays. A clip exists when its first sample lies inside the video, and a
video has at least one clip. The file is read once, in order; only sampled frames are converted, each once, and frames
that no sampled one refers to are not decoded where the file allows it (selection.py).

Shape letters: T clips, F frames a clip, S image size (square; frames are squashed to it). Time is in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..contracts import FeatureSpec
from ..errors import InputError, require_package
from .frames import Shown, promised_s, shown_frames
from .hardware import named
from .pictures import FILTERS, encode_jpeg, shown_aspect, upright_rgb

VISION_BATCH = 16  # clips that are decoded at once, and that the vision model gets at once
_TICK_S = 1e-9  # sample times and timestamps nearer than this are the same moment: only rounding parts them


def clip_count(duration_s: float, clip_s: float, frames_per_clip: int) -> int:
    """How many clips a video of `duration_s` seconds has."""
    first_s = 0.5 * clip_s / frames_per_clip
    return max(1, math.ceil((duration_s - first_s - _TICK_S) / clip_s))


def decoder_name() -> str:
    """What decodes here, for those who compare features: its major version, since a new one may round otherwise.

    With the device that the environment names (hardware.py), whose pictures are laid out in another way.
    """
    return f"libavcodec {require_package('av', '').library_versions['libavcodec'][0]} {named()}".rstrip()


class ClipStream:
    """Iterate over a video's clips in batches: uint8 [n, F, S, S, 3], RGB, n <= batch, memory bounded by the batch.

    `threads` are the decoder's (0: as many as the machine has cores). After the last batch `duration_s` and `clips`
    are known, and `warnings` says in one line each what was wrong with the file and what was done about it.
    With `every_frame` all of the file is decoded: the same pictures, and damage is seen everywhere.
    Iterating raises InputError when the file cannot be used at all.
    """

    def __init__(
        self, path: str | Path, spec: FeatureSpec, *, batch: int = VISION_BATCH, threads: int = 0,
        every_frame: bool = False,
    ) -> None:  # fmt: skip
        if spec.frames_per_clip < 1 or spec.image_size < 1 or not 0 < spec.clip_s < math.inf or batch < 1:
            raise InputError(
                "frames_per_clip, image_size, clip_s and batch must be positive, got "
                f"{spec.frames_per_clip}, {spec.image_size}, {spec.clip_s} and {batch}"
            )
        if spec.resize not in FILTERS:
            raise InputError(f"feature contract: resize must be one of {', '.join(FILTERS)}, got {spec.resize!r}")
        self.path, self.spec, self.batch, self.threads = Path(path), spec, batch, threads
        self.every_frame = every_frame
        self.warnings: list[str] = []
        self._duration_s = math.nan
        self._clips = 0

    @property
    def duration_s(self) -> float:
        """Last timestamp and its frame's duration, from the first timestamp. RuntimeError before the end."""
        self._require_end()
        return self._duration_s

    @property
    def clips(self) -> int:
        """T. RuntimeError before the end."""
        self._require_end()
        return self._clips

    def _shown(self) -> Iterator[Shown]:
        """Every frame in order; what a stream from elsewhere than a file replaces (memory.py)."""
        return shown_frames(self.path, self.threads, self.warnings, None if self.every_frame else self._wants)

    def _wants(self, start_s: float, end_s: float) -> bool:
        """Whether a sample lies between two times."""
        step_s = self.spec.clip_s / self.spec.frames_per_clip
        return (max(0, math.ceil(start_s / step_s - 0.5)) + 0.5) * step_s < end_s

    def _require_end(self) -> None:
        if math.isnan(self._duration_s):
            raise RuntimeError(f"{self.path}: duration and clip count are known after the last batch is taken")

    def __iter__(self) -> Iterator[np.ndarray]:
        av, spec = require_package("av", ""), self.spec
        self._duration_s, self._clips, self.warnings = math.nan, 0, []
        shape = (self.batch, spec.frames_per_clip, spec.image_size, spec.image_size, 3)
        reformatter = av.video.reformatter.VideoReformatter()
        clips = np.empty(shape, np.uint8)
        clip = sample = 0  # the next sample's clip and its place in the clip

        for shown in self._shown():
            picture = None
            if shown.is_last:
                self._duration_s = shown.end_s
                self._clips = clip_count(shown.end_s, spec.clip_s, spec.frames_per_clip)
            while True:
                time_s = clip * spec.clip_s + (sample + 0.5) * spec.clip_s / spec.frames_per_clip
                if clip >= self._clips if shown.is_last else time_s >= shown.end_s - _TICK_S:
                    break
                if picture is None:
                    assert shown.frame is not None, "a sample lies in its time"
                    size = (spec.image_size, spec.image_size)
                    picture = upright_rgb(self.path, reformatter, shown.frame, size, spec.resize, shown.crop)
                clips[clip % self.batch, sample] = picture
                sample += 1
                if sample == spec.frames_per_clip:
                    clip, sample = clip + 1, 0
                    if clip % self.batch == 0:
                        yield clips
                        clips = np.empty(shape, np.uint8)
        if clip % self.batch:
            yield clips[: clip % self.batch]


def read_clips(path: str | Path, spec: FeatureSpec) -> tuple[np.ndarray, float]:
    """The whole video: (uint8 [T, F, S, S, 3], duration in seconds). Raises InputError when it cannot be used."""
    stream = ClipStream(path, spec)
    return np.concatenate(list(stream)), stream.duration_s


def promised_clips(path: str | Path, spec: FeatureSpec) -> int:
    """How many clips a file's header announces, 0 when it does not say: for progress, the decoder knows better.

    Raises InputError when the file cannot be opened.
    """
    duration_s = promised_s(Path(path))
    return clip_count(duration_s, spec.clip_s, spec.frames_per_clip) if 0 < duration_s < math.inf else 0


def key_frames(path: str | Path, times_s: Sequence[float], height: int) -> list[bytes]:
    """A JPEG of the frame on screen at each time, upright, `height` pixels high, in the given order and aspect.

    Times outside the video take its first or last frame. Raises InputError when the file cannot be used.
    """
    if len(times_s) == 0:
        return []
    times = np.asarray(times_s, np.float64)
    if not np.isfinite(times).all() or height < 2:
        raise InputError(f"key frames need finite times and a height of 2 pixels or more, got {times_s} and {height}")
    av = require_package("av", "")
    reformatter = av.video.reformatter.VideoReformatter()
    pictures: list[bytes] = [b""] * len(times)
    waiting = sorted(range(len(times)), key=times.__getitem__)
    ordered = times[waiting]

    def wants(start_s: float, end_s: float) -> bool:
        return bool(np.searchsorted(ordered, start_s) < np.searchsorted(ordered, end_s))

    for shown in shown_frames(Path(path), 0, [], wants):
        until_s = math.inf if shown.is_last else shown.end_s - _TICK_S
        due = [i for i in waiting if times[i] < until_s]
        if due:
            assert shown.frame is not None, "a time that is asked for lies in its time"
            size = (max(2, round(height * shown_aspect(shown.frame, shown.pixel_aspect, shown.crop))), height)
            encoded = encode_jpeg(upright_rgb(Path(path), reformatter, shown.frame, size, "bicubic", shown.crop))
            for i in due:
                pictures[i] = encoded
            waiting = waiting[len(due) :]
        if not waiting:
            break
    return pictures
