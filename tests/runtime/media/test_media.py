"""Decoding by presentation timestamp, on files whose pictures carry their own frame number."""

from __future__ import annotations

import io
import os
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from sdst_runtime.contracts import FeatureSpec
from sdst_runtime.errors import InputError
from sdst_runtime.media.clips import ClipStream, clip_count, key_frames, read_clips

SIZE = 32  # the pictures are squashed to it; frame numbers stay readable


def sample_times(clips: int, clip_s: float, frames_per_clip: int) -> np.ndarray:
    """Seconds at which each clip is sampled: float64 [clips, frames_per_clip]."""
    middles_s = (np.arange(frames_per_clip) + 0.5) * clip_s / frames_per_clip
    return np.arange(clips)[:, None] * float(clip_s) + middles_s


def make_spec(clip_s: float = 2.0, frames: int = 4, resize: str = "bicubic") -> FeatureSpec:
    mean = std = (0.5, 0.5, 0.5)
    return FeatureSpec("test", "0" * 64, 1, "mean", frames, clip_s, SIZE, resize, mean, std, 8, "test", 8, 8)


def numbered(number: int, width: int = 64, height: int = 48) -> np.ndarray:
    """A picture of 4 x 2 black and white blocks, the bits of `number`: uint8 [height, width, 3]."""
    bits = np.array([number >> bit & 1 for bit in range(8)]).reshape(2, 4)
    rows, columns = np.arange(height) * 2 // height, np.arange(width) * 4 // width
    return np.repeat(bits[rows][:, columns, None] * np.uint8(255), 3, axis=2).astype(np.uint8)


def read_number(picture: np.ndarray) -> int:
    """The number in a squashed picture, uint8 [SIZE, SIZE, 3]."""
    centres = picture[SIZE // 4 :: SIZE // 2, SIZE // 8 :: SIZE // 4].mean(axis=-1)
    assert (abs(centres - 127.5) > 80).all(), centres
    return int(((centres > 127.5).ravel() << np.arange(8)).sum())


def write_video(
    path: Path,
    pts: list[int],
    time_base: Fraction,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    size: tuple[int, int] = (64, 48),
    rotation: int = 0,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    with av.open(str(path), "w", options=container_options or {}) as container:
        step = Fraction(pts[-1] - pts[0], len(pts) - 1) if len(pts) > 1 else Fraction(1)
        stream = container.add_stream(codec, rate=(1 / (step * time_base)).limit_denominator(2000))
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = time_base
        stream.options = (
            {"preset": "ultrafast", "crf": "10", "bf": "0", **(options or {})} if codec == "libx264" else {}
        )
        for number, value in enumerate(pts):
            frame = av.VideoFrame.from_ndarray(numbered(number % 256, *size), format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = value, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    if rotation:
        rotate(path, rotation)
    return path


def rotate(path: Path, rotation: int) -> None:
    """State in an mp4 file that its pictures are to be turned, counter-clockwise: the matrix of its track header."""
    sine, cosine = {90: (1, 0), 180: (0, -1), -90: (-1, 0)}[rotation]
    matrix = (cosine, -sine, 0, sine, cosine, 0, 0, 0, 1 << 14)
    content = path.read_bytes()
    start = content.index(b"tkhd") + 4 + 40
    values = struct.pack(">9i", *(value << 16 for value in matrix))
    path.write_bytes(content[:start] + values + content[start + len(values) :])


def expected_numbers(times_s: list[float], spec: FeatureSpec, duration_s: float) -> list[list[int]]:
    """The rule, word by word: for every clip and sample the last frame not later than it."""
    rows, k, frames = [], 0, spec.frames_per_clip
    while k == 0 or k * spec.clip_s + 0.5 * spec.clip_s / frames < duration_s:
        row = []
        for j in range(frames):
            sample_s = k * spec.clip_s + (j + 0.5) * spec.clip_s / frames
            row.append(max(i for i, time_s in enumerate(times_s) if time_s <= sample_s + 1e-6) % 256)
        rows.append(row)
        k += 1
    return rows


def numbers_of(clips: np.ndarray) -> list[list[int]]:
    return [[read_number(picture) for picture in clip] for clip in clips]


def vfr_pts(count: int, seed: int = 0) -> list[int]:
    return np.cumsum(np.random.default_rng(seed).integers(900, 13500, count)).tolist()


CASES = {
    "25 fps": ("a.mp4", list(range(180)), Fraction(1, 25), {}),
    "29.97 fps": ("a.mp4", [1001 * i for i in range(200)], Fraction(1, 30000), {}),
    "29.97 fps, mkv": ("a.mkv", [1001 * i for i in range(120)], Fraction(1, 30000), {}),
    "variable rate": ("a.mp4", vfr_pts(120), Fraction(1, 90000), {}),
    "variable rate, B-frames": ("a.mp4", vfr_pts(120, 1), Fraction(1, 90000), {"bf": "3"}),
    "25 fps, B-frames": ("a.mkv", list(range(130)), Fraction(1, 25), {"bf": "3"}),
    "starts at 5 s": ("a.mp4", [125 + i for i in range(110)], Fraction(1, 25), {}),
    "starts at 5 s, mkv": ("a.mkv", [125 + i for i in range(110)], Fraction(1, 25), {}),
    "starts at 3 s, transport stream": (
        "a.ts",
        [270000 + 3600 * i for i in range(110)],
        Fraction(1, 90000),
        {"bf": "2"},
    ),
    "shorter than a clip": ("a.mp4", list(range(7)), Fraction(1, 25), {}),
    "two frames": ("a.mp4", [0, 1], Fraction(1, 25), {}),
    "10 frames in 100 s": ("a.mp4", [10 * i for i in range(10)], Fraction(1, 1), {}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("clip_s", "frames"), [(2.0, 4), (1.0, 3)])
def test_samples_are_the_frames_on_screen(tmp_path: Path, case: str, clip_s: float, frames: int) -> None:
    name, pts, time_base, options = CASES[case]
    path = write_video(tmp_path / name, pts, time_base, options=options)
    spec = make_spec(clip_s, frames)
    clips, duration_s = read_clips(path, spec)
    rounding = 1000 if path.suffix == ".mkv" else 10**9  # Matroska stores milliseconds
    times_s = [int((value - pts[0]) * time_base * rounding + Fraction(1, 2)) / rounding for value in pts]
    mean_s = times_s[-1] / (len(pts) - 1)
    assert abs(duration_s - times_s[-1] - mean_s) < (0.16 if "variable" in case else 0.003), "the last frame's own time"
    assert clips.dtype == np.uint8
    assert clips.shape[1:] == (frames, SIZE, SIZE, 3)
    assert numbers_of(clips) == expected_numbers(times_s, spec, duration_s)
    assert len(clips) == clip_count(duration_s, clip_s, frames)


def test_sample_times_and_clip_count() -> None:
    np.testing.assert_array_equal(sample_times(2, 2.0, 4), [[0.25, 0.75, 1.25, 1.75], [2.25, 2.75, 3.25, 3.75]])
    np.testing.assert_array_equal(sample_times(1, 1.0, 1), [[0.5]])
    counts = [(0.0, 1), (0.04, 1), (2.0, 1), (2.25, 1), (2.26, 2), (150.0, 75), (150.2, 75), (150.3, 76)]
    for duration_s, clips in counts:
        assert clip_count(duration_s, 2.0, 4) == clips, duration_s


def test_stream_is_bounded_and_repeatable(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", list(range(260)), Fraction(1, 25))
    stream = ClipStream(path, make_spec(1.0, 2), batch=4, threads=1)
    with pytest.raises(RuntimeError, match="after the last batch"):
        _ = stream.clips
    batches = list(stream)
    assert [len(batch) for batch in batches] == [4, 4, 3]
    assert (stream.clips, stream.warnings) == (11, [])
    assert stream.duration_s == pytest.approx(10.4)
    whole, duration_s = read_clips(path, make_spec(1.0, 2))
    np.testing.assert_array_equal(np.concatenate(batches), whole)
    np.testing.assert_array_equal(np.concatenate(list(stream)), whole)
    assert duration_s == stream.duration_s


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_rotated_video_is_upright(tmp_path: Path, rotation: int) -> None:
    path = write_video(tmp_path / "a.mp4", list(range(60)), Fraction(1, 25), rotation=rotation)
    clips, _ = read_clips(path, make_spec())
    raw, _ = read_clips(write_video(tmp_path / "raw.mp4", list(range(60)), Fraction(1, 25)), make_spec())
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).rotation % 360 == rotation % 360
    np.testing.assert_array_equal(clips, np.rot90(raw, rotation // 90, axes=(2, 3)))  # rotation: counter-clockwise
    (jpeg,) = key_frames(path, [0.0], 40)
    with av.open(io.BytesIO(jpeg), format="jpeg_pipe") as container:
        frame = next(container.decode(video=0))
    assert (frame.width, frame.height) == ((53, 40) if rotation == 180 else (30, 40))


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "size", "name"),
    [
        ("libx264", "yuv444p", (67, 45), "odd size"),
        ("ffv1", "yuv420p", (67, 45), "odd size, 4:2:0"),
        ("libx264", "yuv420p10le", (64, 48), "10-bit"),
        ("libx264", "gray", (64, 48), "grey"),
        ("mpeg4", "yuv420p", (64, 48), "mpeg4"),
    ],
)
def test_picture_formats(tmp_path: Path, codec: str, pix_fmt: str, size: tuple[int, int], name: str) -> None:
    pts = list(range(60))
    path = write_video(tmp_path / "a.mkv", pts, Fraction(1, 25), codec=codec, pix_fmt=pix_fmt, size=size)
    clips, duration_s = read_clips(path, make_spec())
    assert numbers_of(clips) == expected_numbers([i / 25 for i in pts], make_spec(), duration_s)
    assert clips.min() < 8
    assert clips.max() > 247


def test_no_duration_in_header(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.h264", list(range(60)), Fraction(1, 25))  # raw: no header, no timestamps
    with av.open(str(path)) as container:
        assert container.duration is None
    stream = ClipStream(path, make_spec())
    clips = np.concatenate(list(stream))
    assert stream.clips == 2
    assert stream.duration_s == pytest.approx(2.4, abs=0.05)
    assert numbers_of(clips)[0] == [6, 18, 31, 43]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_cut_off_files_are_used_and_said(tmp_path: Path, name: str) -> None:
    options = {"movflags": "faststart"} if name == "a.mp4" else None
    path = write_video(tmp_path / name, list(range(250)), Fraction(1, 25), container_options=options)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    stream = ClipStream(path, make_spec())
    clips = np.concatenate(list(stream))
    assert 2 <= stream.clips <= 4
    assert len(clips) == stream.clips
    assert numbers_of(clips[:1]) == [[6, 18, 31, 43]]
    assert any("header promises 10.0 s" in warning for warning in stream.warnings)


@pytest.mark.parametrize(
    ("name", "warning"),
    [
        ("a.mp4", "damaged packets were skipped"),
        ("a.mkv", "no frame came for long"),  # Matroska loses all up to its next cluster
    ],
)
def test_damaged_middle_is_said(tmp_path: Path, name: str, warning: str) -> None:
    path = write_video(tmp_path / name, list(range(250)), Fraction(1, 25), options={"g": "10"})
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 40] = bytes(40)
    stream = ClipStream(write_bytes(path, bytes(data)), make_spec())
    clips = np.concatenate(list(stream))
    assert len(clips) == stream.clips == 5
    numbers = numbers_of(clips[[0, -1]])
    assert numbers[0] == [6, 18, 31, 43]
    assert numbers[1][2:] == [231, 243]
    assert [warning in text for text in stream.warnings] == [True]


def test_repaired_timestamps_are_said(tmp_path: Path) -> None:
    first = write_video(tmp_path / "1.ts", list(range(100)), Fraction(1, 25))
    path = tmp_path / "joined.ts"
    path.write_bytes(first.read_bytes() * 2)  # the clock starts again in the middle
    stream = ClipStream(path, make_spec())
    clips = np.concatenate(list(stream))
    assert stream.duration_s == pytest.approx(8.0, abs=0.2)
    assert numbers_of(clips[:1]) == [[6, 18, 31, 43]]
    assert any("timestamps jumped" in warning for warning in stream.warnings)


def test_key_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", list(range(60)), Fraction(1, 25), size=(128, 64))
    pictures = key_frames(path, [1.01, -3.0, 0.5, 99.0, 0.5], 48)
    assert key_frames(path, [], 48) == []
    assert pictures[2] == pictures[4]
    numbers = []
    for picture in pictures:
        assert picture[:2] == b"\xff\xd8"
        (tmp_path / "p.jpg").write_bytes(picture)
        with av.open(str(tmp_path / "p.jpg")) as container:
            frame = next(container.decode(video=0))
        assert (frame.width, frame.height) == (96, 48)
        numbers.append(read_number(frame.reformat(SIZE, SIZE, "rgb24").to_ndarray()))
    assert numbers == [25, 0, 12, 59, 12]


def write_sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts = 8000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_bytes(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


BAD_INPUT = {
    "missing": (lambda d: d / "none.mp4", "no such video file"),
    "directory": (lambda d: d, "is a directory"),
    "text": (lambda d: write_bytes(d / "a.mp4", b"this is not a video\n" * 50), "not a video that can be read"),
    "text by name": (lambda d: write_bytes(d / "a.txt", b"this is not a video\n" * 50), "text file|not a video"),
    "empty": (lambda d: write_bytes(d / "a.mp4", b""), "not a video that can be read"),
    "sound": (lambda d: write_sound(d / "a.wav"), r"no video stream \(only audio"),
    "one frame": (lambda d: write_video(d / "a.mp4", [0], Fraction(1, 25)), "one frame only"),
    "cut header": (lambda d: cut_half(write_video(d / "a.mp4", list(range(50)), Fraction(1, 25))), "header is broken"),
    "playlist": (lambda d: write_bytes(d / "a.m3u8", b"#EXTM3U\n#EXTINF:2,\nhttp://127.0.0.1:9/a.ts\n"), "not a video"),
    "no pictures": (lambda d: no_pictures(d / "a.mp4"), "no frame of its video can be decoded"),
}


def cut_half(path: Path) -> Path:
    return write_bytes(path, path.read_bytes()[: path.stat().st_size // 2])


def no_pictures(path: Path) -> Path:
    data = write_video(path, list(range(50)), Fraction(1, 25)).read_bytes()
    start, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    return write_bytes(path, data[:start] + bytes(end - start) + data[end:])


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line(tmp_path: Path, case: str) -> None:
    make, message = BAD_INPUT[case]
    path = make(tmp_path)
    for use in (lambda: read_clips(path, make_spec()), lambda: key_frames(path, [0.0], 48)):
        with pytest.raises(InputError, match=message) as caught:
            use()
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_unreadable_file(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", list(range(5)), Fraction(1, 25))
    path.chmod(0)
    with pytest.raises(InputError, match="not a video that can be read"):
        read_clips(path, make_spec())


def test_bad_contract(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="resize must be one of"):
        ClipStream(tmp_path / "a.mp4", make_spec(resize="antialias"))
    with pytest.raises(InputError, match=r"clip_s: expected at least 0.01 seconds, got 0.0"):
        ClipStream(tmp_path / "a.mp4", make_spec(clip_s=0.0))
