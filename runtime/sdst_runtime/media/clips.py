"""Video files in, clips of pictures out: decoding by presentation timestamp.

Time 0 is the first frame's timestamp. Clip k covers [k * clip_s, (k + 1) * clip_s); its samples are the middles of
`frames_per_clip` equal intervals. A sample takes the frame on screen at that time, the last one whose timestamp is
not later; after the last frame its picture stays. A clip exists when its first sample lies inside the video, and a
video has at least one clip. The file is decoded once, in order, and only sampled frames are converted, each once.

Shape letters: T clips, F frames a clip, S image size (square; frames are squashed to it). Time is in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..contracts import FeatureSpec
from ..errors import InputError, require_package

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

VISION_BATCH = 16  # clips that are decoded at once, and that the vision model gets at once
_TICK_S = 1e-9  # sample times and timestamps nearer than this are the same moment: only rounding parts them
_REWIND_S = 1.0  # a longer step back is a restarted clock (joined recordings); a shorter one is a damaged timestamp
_GAP_S = 3600.0  # a longer step forward is a broken clock, not a still picture
_HOLE_S, _HOLE_INTERVALS = 1.0, 20  # a longer wait for the next frame, at a rate this much higher, is a hole
_PROMISE_S = 0.5  # a video that ends earlier than its header says by more than this was cut off
_UNSPECIFIED, _RESERVED = 2, 3  # code points that H.273 gives to colour spaces, transfers and primaries alike
_FILTERS = {"bicubic": "BICUBIC", "bilinear": "BILINEAR", "area": "AREA", "lanczos": "LANCZOS"}


def clip_count(duration_s: float, clip_s: float, frames_per_clip: int) -> int:
    """How many clips a video of `duration_s` seconds has."""
    first_s = 0.5 * clip_s / frames_per_clip
    return max(1, math.ceil((duration_s - first_s - _TICK_S) / clip_s))


def decoder_name() -> str:
    """What decodes here, for those who compare features: its major version, since a new one may round otherwise."""
    return f"libavcodec {require_package('av', '').library_versions['libavcodec'][0]}"


class ClipStream:
    """Iterate over a video's clips in batches: uint8 [n, F, S, S, 3], RGB, n <= batch, memory bounded by the batch.

    `threads` are the decoder's (0: as many as the machine has cores). After the last batch `duration_s` and `clips`
    are known, and `warnings` says in one line each what was wrong with the file and what was done about it.
    Iterating raises InputError when the file cannot be used at all.
    """

    def __init__(self, path: str | Path, spec: FeatureSpec, *, batch: int = VISION_BATCH, threads: int = 0) -> None:
        if spec.frames_per_clip < 1 or spec.image_size < 1 or not 0 < spec.clip_s < math.inf or batch < 1:
            raise InputError(
                "frames_per_clip, image_size, clip_s and batch must be positive, got "
                f"{spec.frames_per_clip}, {spec.image_size}, {spec.clip_s} and {batch}"
            )
        if spec.resize not in _FILTERS:
            raise InputError(f"feature contract: resize must be one of {', '.join(_FILTERS)}, got {spec.resize!r}")
        self.path, self.spec, self.batch, self.threads = Path(path), spec, batch, threads
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
        """Every frame in order; what a stream from elsewhere than a file replaces (frames.py)."""
        return _shown_frames(self.path, self.threads, self.warnings)

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
                    size = (spec.image_size, spec.image_size)
                    picture = _upright_rgb(self.path, reformatter, shown.frame, size, spec.resize)
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
    for shown in _shown_frames(Path(path), 0, []):
        until_s = math.inf if shown.is_last else shown.end_s - _TICK_S
        due = [i for i in waiting if times[i] < until_s]
        if due:
            frame = shown.frame
            aspect = frame.width / frame.height * shown.pixel_aspect
            aspect = 1 / aspect if _quarter_turns(frame) % 2 else aspect
            picture = _upright_rgb(Path(path), reformatter, frame, (max(2, round(height * aspect)), height), "bicubic")
            encoded = _encode_jpeg(av, picture)
            for i in due:
                pictures[i] = encoded
            waiting = waiting[len(due) :]
        if not waiting:
            break
    return pictures


def promised_clips(path: str | Path, spec: FeatureSpec) -> int:
    """How many clips a file's header announces, 0 when it does not say: for progress, the decoder knows better.

    Raises InputError when the file cannot be opened.
    """
    av = require_package("av", "")
    with _open(av, Path(path)) as container:
        promised_s = _promised_s(container, _video_stream(Path(path), container))
        promised_s = promised_s or (container.duration or 0) / 1e6
    return clip_count(promised_s, spec.clip_s, spec.frames_per_clip) if 0 < promised_s < math.inf else 0


# ---------------------------------------------------------------- frames and how long each is shown


@dataclass(frozen=True)
class Shown:
    """A decoded frame and when it leaves the screen, counted from the first frame."""

    frame: VideoFrame
    end_s: float  # the next frame's time or, for the last, the end of the video
    is_last: bool
    pixel_aspect: float  # width of a pixel over its height


@dataclass
class _Clock:
    """Turns raw timestamps into seconds from the first frame that never go back, and counts what it had to mend."""

    usual_s: float  # the interval to assume when there is none to measure
    tick_s: Fraction
    first: int | None = None  # raw timestamp of time 0
    last_s: float = 0.0
    frames: int = 0
    mended: dict[str, int] = field(default_factory=dict)

    def interval_s(self) -> float:
        """Mean time between frames so far."""
        return self.last_s / (self.frames - 1) if self.frames > 1 and self.last_s > 0 else self.usual_s

    def accept(self, pts: int | None) -> bool:
        """Advance to a frame; False when it is to be dropped. Afterwards `last_s` is its time."""
        if self.frames == 0:
            self.first, time_s = pts, 0.0
        elif pts is None:
            self._count("frames had no timestamp: placed one mean interval after the one before")
            time_s = self.last_s + self.interval_s()
        else:
            if self.first is None:  # the frames so far had none: the clock starts here
                self.first = pts - round((self.last_s + self.interval_s()) / self.tick_s)
            time_s = float((pts - self.first) * self.tick_s)
            if time_s < self.last_s - _REWIND_S or time_s > self.last_s + _GAP_S:
                self._count("times the timestamps jumped: the video was taken to run on without a gap")
                time_s = self.last_s + self.interval_s()
                self.first = pts - round(time_s / self.tick_s)
            elif time_s < self.last_s:
                self._count("frames came later than their timestamp: dropped")
                return False
            elif time_s - self.last_s > max(_HOLE_S, _HOLE_INTERVALS * self.interval_s()):
                self._count("times no frame came for long: the picture before was kept")
        self.last_s, self.frames = time_s, self.frames + 1
        return True

    def _count(self, what: str) -> None:
        self.mended[what] = self.mended.get(what, 0) + 1


def _shown_frames(path: Path, threads: int, warnings: list[str]) -> Iterator[Shown]:
    """Every frame in order, each with the time until which it is on screen; raises InputError for unusable files."""
    av = require_package("av", "")
    with _open(av, path) as container:
        stream = _video_stream(path, container)
        stream.codec_context.thread_type = "AUTO"
        stream.codec_context.thread_count = threads
        aspect = float(stream.sample_aspect_ratio or 1) or 1.0
        rate = stream.average_rate or stream.guessed_rate
        clock = _Clock(float(1 / rate) if rate else 0.04, Fraction(stream.time_base or Fraction(1, 1000)))
        waiting: VideoFrame | None = None
        for frame in _decode(av, container, stream, clock, warnings):
            if not clock.accept(frame.pts):
                continue
            if waiting is not None:
                yield Shown(waiting, clock.last_s, False, aspect)
            waiting = frame
        promised_s = _promised_s(container, stream)
    if waiting is None:
        raise InputError(f"{path}: no frame of its video can be decoded; convert it again, e.g. to H.264 mp4")
    if clock.frames == 1:
        raise InputError(f"{path}: holds one frame only, a picture and no video; give a file with two frames or more")
    length_s = float((getattr(waiting, "duration", 0) or 0) * clock.tick_s)
    end_s = clock.last_s + (length_s if 0 < length_s <= _GAP_S else clock.interval_s())
    warnings.extend(f"{path}: {count} {what}" for what, count in clock.mended.items())
    if promised_s - end_s > _PROMISE_S:
        warnings.append(f"{path}: its header promises {promised_s:.1f} s, {end_s:.1f} s could be decoded and were used")
    yield Shown(waiting, end_s, True, aspect)


def _open(av: Any, path: Path) -> InputContainer:
    """Open a local file and nothing else: playlists may not lead elsewhere."""
    try:
        if path.is_dir():
            raise InputError(f"{path}: is a directory; give a video file in it")
        if not path.exists():
            raise InputError(f"{path}: no such video file; check the path")
        options = {"protocol_whitelist": "file"}
        # PyAV 19 keeps tags that are not UTF-8 by itself, and knows the argument no more
        tags = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
        return av.open(f"file:{path}", container_options=options, **tags)
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{path}: not a video that can be read ({reason}); its header is broken or it is another kind of file: "
            "give or convert it to mp4, mkv, webm, mov or avi"
        ) from error


def _video_stream(path: Path, container: InputContainer) -> VideoStream:
    """The first stream of moving pictures; cover art is none."""
    if "tty" in container.format.name.split(","):  # FFmpeg draws text files as if they were terminals
        raise InputError(f"{path}: is a text file; give a video")
    for stream in container.streams.video:
        if "attached_pic" not in str(stream.disposition) and stream.codec_context is not None:
            return stream
    kinds = sorted({stream.type for stream in container.streams})
    what = "only audio" if kinds == ["audio"] else f"only {' and '.join(kinds)}" if kinds else "nothing"
    raise InputError(f"{path}: has no video stream ({what} in it); give a file with pictures")


def _decode(
    av: Any, container: InputContainer, stream: VideoStream, clock: _Clock, warnings: list[str]
) -> Iterator[VideoFrame]:
    """Decoded frames in presentation order. Damaged packets are skipped and counted; an unreadable rest ends it."""
    packets, name = container.demux(stream), container.name.removeprefix("file:")
    damaged = 0
    while True:
        try:
            packet = next(packets, None)
        except (av.FFmpegError, OSError) as error:
            warnings.append(f"{name}: unreadable after {clock.last_s:.1f} s ({error})")
            packet = None
        try:
            frames = stream.codec_context.decode(None) if packet is None else packet.decode()
        except EOFError:  # the drained decoder is asked again
            frames = []
        except (av.FFmpegError, OSError):
            damaged, frames = damaged + 1, []
        yield from frames
        if packet is None:
            break
    if damaged:
        warnings.append(f"{name}: {damaged} damaged packets were skipped")


def _promised_s(container: InputContainer, stream: VideoStream) -> float:
    """Seconds of video that the header announces, 0 when it does not say."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    try:  # Matroska keeps it as a tag a stream
        hours, minutes, seconds = stream.metadata.get("DURATION", "").split(":")
        return (
            int(hours) * 3600
            + int(minutes) * 60
            + float(seconds)
            - (stream.start_time or 0) * float(stream.time_base or 0)
        )
    except ValueError:
        alone = len(container.streams) == 1  # otherwise the container's length may be the sound's
        return container.duration / 1e6 if alone and container.duration else 0.0


# ---------------------------------------------------------------- pictures


def _quarter_turns(frame: VideoFrame) -> int:
    """Counter-clockwise quarter turns that bring the frame upright (its display matrix)."""
    return round((frame.rotation or 0) / 90) % 4


def _upright_rgb(path: Path, reformatter: Any, frame: VideoFrame, size: tuple[int, int], resize: str) -> np.ndarray:
    """The frame scaled to (width, height) of the upright picture and turned: uint8 [height, width, 3], RGB.

    Matrix and range are those that the frame states (a stream without them is BT.601 in narrow range, as for FFmpeg).
    """
    turns = _quarter_turns(frame)
    width, height = reversed(size) if turns % 2 else size
    if hasattr(frame, "color_trc"):  # neither is converted, and PyAV 17 refuses frames with odd ones
        frame.color_trc = frame.color_primaries = _UNSPECIFIED
    if frame.colorspace == _RESERVED:
        frame.colorspace = _UNSPECIFIED
    try:
        scaled = reformatter.reformat(frame, width, height, "rgb24", interpolation=_FILTERS[resize])
    except OSError as error:
        kind = f"{frame.format.name}, colour space {int(frame.colorspace)} of H.273"
        raise InputError(
            f"{path}: its pictures ({kind}) cannot be turned into RGB ({error}); convert it to H.264 in BT.709"
        ) from error
    return np.rot90(scaled.to_ndarray(), turns)


def _encode_jpeg(av: Any, picture: np.ndarray) -> bytes:
    """uint8 [H, W, 3] RGB as a JPEG file."""
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24").reformat(format="yuvj420p")
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt = frame.width, frame.height, "yuvj420p"
    encoder.time_base = Fraction(1, 25)
    encoder.options = {"qmin": "2", "qmax": "4"}
    frame.pts = 0
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])
