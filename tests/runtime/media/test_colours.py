"""Colours of decoded pictures: each matrix and range that a stream may state gives the colours that were painted.

The pictures are turned into Y'CbCr here, by the formulas of H.273, and stored without loss, so that no converter of
FFmpeg is on both sides.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext
from av.video.reformatter import VideoReformatter
from places import DATA

from sdst_runtime.contracts import FeatureSpec
from sdst_runtime.errors import InputError
from sdst_runtime.media.clips import key_frames, read_clips
from sdst_runtime.media.pictures import upright_rgb

BARS = np.array(
    [
        (200, 30, 30), (30, 200, 30), (30, 30, 200), (128, 128, 128),
        (240, 240, 240), (20, 20, 20), (200, 200, 30), (100, 150, 200),
    ]
)  # fmt: skip
WEIGHTS = {"BT.601": (0.299, 0.114), "BT.709": (0.2126, 0.0722), "BT.2020": (0.2627, 0.0593)}  # of red and blue
NARROW, FULL = 1, 2  # FFmpeg's numbers of the ranges
SIZE = 64  # a bar is 8 pixels wide


def spec(size: int = SIZE) -> FeatureSpec:
    half = (0.5, 0.5, 0.5)
    return FeatureSpec("test", "0" * 64, 1, "mean", 2, 1.0, size, "bicubic", half, half, 8, "test", 8, 8)


def planes(matrix: str, full: bool) -> np.ndarray:
    """The bars in Y'CbCr: uint8 [3, SIZE, SIZE]."""
    red, blue = WEIGHTS[matrix]
    rgb = np.repeat(BARS, SIZE // len(BARS), axis=0) / 255
    y = rgb @ [red, 1 - red - blue, blue]
    cb, cr = (rgb[:, 2] - y) / (2 - 2 * blue), (rgb[:, 0] - y) / (2 - 2 * red)
    scaled = [255 * y, 255 * cb + 128, 255 * cr + 128] if full else [219 * y + 16, 224 * cb + 128, 224 * cr + 128]
    return np.repeat(np.rint(scaled).clip(0, 255).astype(np.uint8)[:, None], SIZE, axis=1)


def paint(frame: av.VideoFrame, values: np.ndarray) -> None:
    for plane, rows in zip(frame.planes, values, strict=True):
        padded = np.zeros((SIZE, plane.line_size), np.uint8)
        padded[:, :SIZE] = rows
        plane.update(padded.tobytes())


def write_bars(path: Path, matrix: str, full: bool, restated: str = "", **stated: int) -> Path:
    """Three pictures, without loss; `stated` are fields of the codec, `restated` is what no encoder would write."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=2)
        stream.width = stream.height = SIZE
        stream.pix_fmt, stream.options = "yuv444p", {"qp": "0", "preset": "ultrafast"}
        for name, value in stated.items():
            setattr(stream.codec_context, name, value)
        packets = []
        for i in range(3):
            frame = av.VideoFrame(SIZE, SIZE, "yuv444p")
            paint(frame, planes(matrix, full))
            for name, value in stated.items():
                setattr(frame, name, value)
            frame.pts, frame.time_base = i, Fraction(1, 2)
            packets += stream.encode(frame)
        packets += stream.encode(None)
        if restated:  # only streams with their parameters among the pictures, as in .ts, can be changed
            change = BitStreamFilterContext(f"h264_metadata={restated}", stream)
            packets = [changed for packet in packets for changed in change.filter(packet)]
        for packet in packets:
            packet.stream = stream
            container.mux(packet)
    return path


def furthest(picture: np.ndarray) -> int:
    """The largest difference of any channel at the middle of any bar from what was painted."""
    height, width, _ = picture.shape
    middles = picture[height // 2, width // 16 :: width // 8].astype(int)
    assert middles.shape == BARS.shape
    return int(abs(middles - BARS).max())


def test_a_file_of_another_encoder() -> None:
    """tests/data/bt709.mp4: H.264, 64 x 48, states BT.709 in narrow range."""
    clips, _ = read_clips(DATA / "bt709.mp4", spec())
    assert [furthest(picture) <= 2 for clip in clips for picture in clip] == [True] * (len(clips) * 2)


@pytest.mark.parametrize("full", [False, True], ids=["narrow", "full"])
@pytest.mark.parametrize(("matrix", "number"), [("BT.601", 6), ("BT.601", 5), ("BT.709", 1), ("BT.2020", 9)])
def test_what_a_stream_states_is_what_is_read(tmp_path: Path, matrix: str, number: int, full: bool) -> None:
    stated = {"colorspace": number, "color_range": FULL if full else NARROW}
    clips, _ = read_clips(write_bars(tmp_path / "bars.mp4", matrix, full, **stated), spec())
    assert clips.shape[:2] == (2, 2)
    assert max(furthest(picture) for clip in clips for picture in clip) <= 2


def test_a_stream_that_states_nothing_is_bt601_in_narrow_range(tmp_path: Path) -> None:
    """The default of FFmpeg, whatever the size of the pictures."""
    clips, _ = read_clips(write_bars(tmp_path / "bars.mp4", "BT.601", False), spec())
    assert furthest(clips[0, 0]) <= 2


def test_the_wrong_matrix_would_be_seen(tmp_path: Path) -> None:
    clips, _ = read_clips(write_bars(tmp_path / "bars.mp4", "BT.709", False), spec())
    assert furthest(clips[0, 0]) > 20


@pytest.mark.parametrize("number", [1, 13, 16])
def test_transfer_and_primaries_change_nothing(tmp_path: Path, number: int) -> None:
    stated = f"transfer_characteristics={number}:colour_primaries={min(number, 9)}"
    path = write_bars(tmp_path / "bars.ts", "BT.709", False, stated, colorspace=1, color_range=NARROW)
    with av.open(str(path)) as container:
        assert int(next(container.decode(video=0)).color_trc) == number
    clips, _ = read_clips(path, spec())
    assert furthest(clips[0, 0]) <= 2


def test_reserved_numbers_state_nothing() -> None:
    """Some decoders pass them on (VP9's); H.264's does not, so that a frame is made here."""
    frame = av.VideoFrame(SIZE, SIZE, "yuv444p")
    paint(frame, planes("BT.601", False))
    frame.colorspace = frame.color_trc = frame.color_primaries = 3
    picture = upright_rgb(Path("a.webm"), VideoReformatter(), frame, (SIZE, SIZE), "bicubic")
    assert furthest(picture) <= 2


def test_a_matrix_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """YCgCo: read as another its colours would be wrong without a word."""
    path = write_bars(tmp_path / "bars.ts", "BT.601", False, "matrix_coefficients=8", colorspace=1)
    with pytest.raises(InputError, match=r"bars\.ts: its pictures \(yuv444p, colour space 8 of H\.273\) cannot"):
        read_clips(path, spec())


def test_key_frames_have_the_same_colours(tmp_path: Path) -> None:
    stated = {"colorspace": 1, "color_range": NARROW}
    (picture,) = key_frames(write_bars(tmp_path / "bars.mp4", "BT.709", False, **stated), [0.0], SIZE)
    (tmp_path / "bars.jpg").write_bytes(picture)
    with av.open(str(tmp_path / "bars.jpg")) as container:
        decoded = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert furthest(decoded) <= 8  # JPEG, its chroma at half size
