"""Scene -> H.264 mp4, the same bytes for the same scene and frame plan.

A frame plan says when frames are shown: 25 or 30000/1001 frames a second, or a variable rate with irregular
presentation timestamps. It is made before rendering, so the duration of a file is known without opening it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer
from av.video.reformatter import VideoReformatter

from sdst_runtime.errors import InputError
from sdst_runtime.files import atomic_path

from .scenes import Painter, Scene

RATES = ("variable", "25", "29.97")
_SHARES = (0.8, 0.1, 0.1)  # variable is the cheapest (about 12 frames a second) and the hardest to read rightly
_VARIABLE_BASE = Fraction(1, 90000)
_FASTEST, _SLOWEST = 1 / 30, 1 / 8  # seconds between frames of a variable rate


@dataclass(frozen=True)
class FramePlan:
    """Presentation timestamps of a video, in units of `time_base` seconds."""

    time_base: Fraction
    pts: tuple[int, ...]  # strictly increasing, the first 0
    end: int  # when the last frame ends

    @property
    def duration_s(self) -> float:
        """Seconds from the first frame to the end of the last."""
        return float(self.end * self.time_base)


def make_plan(rng: np.random.Generator, duration_s: float, rate: str | None = None) -> FramePlan:
    """Plan about `duration_s` seconds at one of RATES; without a rate, one is drawn (eight in ten variable).

    Raises InputError for an unknown rate.
    """
    chosen = rate if rate is not None else RATES[int(rng.choice(len(RATES), p=_SHARES))]
    if chosen == "variable":
        most = int(duration_s / _FASTEST) + 1
        ticks = np.rint(rng.uniform(_FASTEST, _SLOWEST, most) * _VARIABLE_BASE.denominator).astype(np.int64)
        ends = np.cumsum(ticks)
        count = int(np.searchsorted(ends, duration_s * _VARIABLE_BASE.denominator)) + 1
        return FramePlan(_VARIABLE_BASE, (0, *(int(end) for end in ends[: count - 1])), int(ends[count - 1]))
    bases = {"25": Fraction(1, 25), "29.97": Fraction(1001, 30000)}
    if chosen not in bases:
        raise InputError(f"frame rate: expected one of {', '.join(RATES)}; got {chosen!r}")
    count = max(1, round(duration_s / bases[chosen]))
    return FramePlan(bases[chosen], tuple(range(count)), count)


def render_video(scene: Scene, plan: FramePlan, path: Path, *, size: int = 64) -> None:
    """Write `scene` to `path` as H.264 in mp4, `size` x `size` pixels, atomically and on one thread.

    Raises InputError when the size is odd or too small, or `path` cannot be written.
    """
    check_size(size)
    painter = Painter(scene, size)
    length = dict(zip(plan.pts, np.diff((*plan.pts, plan.end)).tolist(), strict=True))
    with atomic_path(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(30), options={"preset": "ultrafast", "crf": "18"})
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = stream.time_base = plan.time_base
        stream.codec_context.thread_count = 1
        reformatter = VideoReformatter()
        for pts in plan.pts:
            picture = av.VideoFrame.from_numpy_buffer(painter.frame(float(pts * plan.time_base)), format="rgb24")
            frame = reformatter.reformat(picture, format="yuv420p", threads=1)
            frame.pts, frame.time_base = pts, plan.time_base
            _mux(container, stream.encode(frame), length)
        _mux(container, stream.encode(None), length)


def check_size(size: int) -> None:
    """Raise InputError unless `size` is an even number of pixels that leaves the shapes recognisable."""
    if size % 2 or size < 32:
        raise InputError(f"demo video size: expected an even number of pixels, 32 or more; got {size}")


def _mux(container: OutputContainer, packets: list[av.Packet], length: dict[int, int]) -> None:
    """Write packets with their true duration; the encoder would give each, also the last, that of its nominal rate."""
    for packet in packets:
        if packet.pts is not None:
            packet.duration = length[packet.pts]
        container.mux(packet)


@functools.cache
def _reformatters() -> tuple[VideoReformatter, VideoReformatter]:
    return VideoReformatter(), VideoReformatter()


def as_decoded(picture: np.ndarray, image_size: int, *, yuv: bool = True) -> np.ndarray:
    """What decoding and resizing (swscale, bicubic) would make of a painted picture, less the codec's own loss.

    picture: S S 3 uint8 RGB -> image_size image_size 3 uint8 RGB. With `yuv` the colours pass through yuv420p first.
    """
    to_yuv, to_rgb = _reformatters()
    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
    if yuv:
        frame = to_yuv.reformat(frame, format="yuv420p", threads=1)
    return to_rgb.reformat(
        frame, width=image_size, height=image_size, format="rgb24", interpolation="BICUBIC", threads=1
    ).to_ndarray()
