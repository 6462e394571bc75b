"""What a player would show: times in display order, mirrors, crops, the right stream; and faults that end a video.

The pictures of tests/data/videos carry their own numbers, as those of test_media.py do.
"""

from __future__ import annotations

import errno
import gc
import io
import re
import shutil
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from places import DATA
from test_media import expected_numbers, make_spec, numbered, numbers_of, write_video

from sdst_runtime.errors import InputError
from sdst_runtime.media.clips import ClipStream, key_frames, read_clips
from sdst_runtime.media.containers import LocalFile, source_digest
from sdst_runtime.media.workers import Unusable, decode_pieces

VIDEOS = DATA / "videos"
TICK = Fraction(1, 25)
FILM = [[50 * k + n for n in (6, 18, 31, 43)] for k in range(5)]  # 10 s at 25 frames a second


def read(path: Path) -> tuple[list[list[int]], float, list[str]]:
    """Numbers of the pictures, duration and warnings."""
    stream = ClipStream(path, make_spec())
    return numbers_of(np.concatenate(list(stream))), stream.duration_s, stream.warnings


def expected(times_s: list[float], duration_s: float) -> list[list[int]]:
    return expected_numbers(times_s, make_spec(), duration_s)


# ---------------------------------------------------------------- the order in which frames are shown


@pytest.mark.parametrize("name", ["25_fps.avi", "cam.MTS", "old.asf", "ref.mp4"])
def test_ten_seconds_of_numbered_pictures(name: str) -> None:
    assert read(VIDEOS / name) == (FILM, pytest.approx(10.0), [])


def test_stamps_that_count_packets_at_one_frame_a_second() -> None:
    numbers = [[2 * k, 2 * k, 2 * k + 1, 2 * k + 1] for k in range(30)]
    assert read(VIDEOS / "one_fps.avi") == (numbers, 60.0, [])


@pytest.mark.parametrize("bframes", [0, 1, 2, 3])
@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_b_frames_in_avi(tmp_path: Path, codec: str, bframes: int) -> None:
    path, pts = tmp_path / "a.avi", list(range(150))
    if codec == "libx264":
        write_video(path, pts, TICK, options={"bf": str(bframes)})
    else:
        write_mpeg4(path, 150, bframes)
    assert read(path) == (expected([i / 25 for i in pts], 6.0), pytest.approx(6.0), [])


def write_mpeg4(path: Path, count: int, bframes: int) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25, options={"bf": str(bframes), "q": "2"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(numbered(i), format="rgb24")
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_packed_b_frames(tmp_path: Path) -> None:
    """As DivX 5 wrote them in AVI: a B-frame in the packet of the frame after it, then an empty one in its place."""
    encoded = write_mpeg4(tmp_path / "plain.avi", 150, 1)
    path = tmp_path / "packed.avi"
    with av.open(str(encoded)) as source, av.open(str(path), "w") as target:
        plain = [packet for packet in source.demux(video=0) if packet.size]
        stream, packed = target.add_stream_from_template(source.streams.video[0]), []
        for packet in plain:
            data = bytes(packet)
            picture = data.index(b"\0\0\1\xb6") + 4
            if data[picture] >> 6 == 2:  # a B-frame
                ticks = (data[picture] & 15) << 1 | data[picture + 1] >> 7
                empty = int(f"0101{ticks:05b}1001111", 2).to_bytes(2, "big")
                packed[-1] += data
                packed.append(b"\0\0\1\xb6" + empty)
            else:
                packed.append(data)
        assert len(packed) == 150
        assert sum(len(data) == 6 for data in packed) > 60
        for i, data in enumerate(packed):
            packet = av.Packet(data)
            packet.pts = packet.dts = i
            packet.time_base, packet.stream, packet.is_keyframe = TICK, stream, plain[i].is_keyframe
            target.mux(packet)
    divx = rb"Lavc[\d.]{8,}"  # a name of the same length
    whole = re.sub(divx, lambda name: b"DivX503b" + b"1" * (len(name[0]) - 9) + b"p", path.read_bytes())
    assert whole.count(b"DivX503b1") > 1
    path.write_bytes(whole)
    # PyAV 17 writes this file with 600 ticks a second and the last frames a tick apart: hence the tolerance
    assert read(path) == (expected([i / 25 for i in range(150)], 6.0), pytest.approx(6.0, abs=0.1), [])


def test_an_edit_list_cuts_the_start(tmp_path: Path) -> None:
    """An mp4 whose edit list begins at its 50th frame of 300: the film is what comes after."""
    path = write_video(tmp_path / "a.mp4", list(range(300)), TICK, options={"bf": "2", "g": "300"})
    data = bytearray(path.read_bytes())
    place = data.index(b"elst") + 4
    version, count, length, start = struct.unpack_from(">IIII", data, place)
    assert (version, count) == (0, 1)
    with av.open(str(path)) as container:
        ticks = round(2 / container.streams.video[0].time_base)
    struct.pack_into(">II", data, place + 8, length * 250 // 300, start + ticks)
    path.write_bytes(data)
    numbers, duration_s, warnings = read(path)
    shifted = [[number + 50 for number in row] for row in FILM]
    assert ([[n % 256 for n in row] for row in shifted], warnings) == (numbers, [])
    assert duration_s == pytest.approx(10.0, abs=0.05)


def test_an_mp4_that_states_decoding_times_only(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", list(range(150)), TICK, options={"bf": "3"})
    data = path.read_bytes()
    assert data.count(b"ctts") == 1
    path.write_bytes(data.replace(b"ctts", b"free").replace(b"edts", b"free"))
    numbers, duration_s, _ = read(path)
    assert (numbers, duration_s) == (expected([i / 25 for i in range(150)], 6.0), pytest.approx(6.0, abs=0.1))


def test_a_lost_packet_moves_no_other_frame(tmp_path: Path) -> None:
    """In AVI: the frames after it keep their times."""
    path = write_video(tmp_path / "a.avi", list(range(150)), TICK, options={"bf": "2", "g": "25"})
    data = bytearray(path.read_bytes())
    places = [i for i in range(data.index(b"movi"), data.index(b"idx1")) if data[i : i + 4] == b"00dc"]
    size = struct.unpack_from("<I", data, places[40] + 4)[0]
    data[places[40] + 8 : places[40] + 8 + size] = bytes(size)
    path.write_bytes(data)
    numbers, duration_s, warnings = read(path)
    whole = expected([i / 25 for i in range(150)], 6.0)
    assert (numbers[0][:3], numbers[2], duration_s) == (whole[0][:3], whole[2], pytest.approx(6.0))
    assert warnings != []


def test_a_clock_that_wraps(tmp_path: Path) -> None:
    start = 2**33 - 3 * 90000
    path = write_video(tmp_path / "a.ts", [start + 3600 * i for i in range(250)], Fraction(1, 90000))
    assert read(path) == (FILM, pytest.approx(10.0, abs=0.05), [])


def test_an_animated_gif_of_variable_rate(tmp_path: Path) -> None:
    pts = np.cumsum([0, *[7, 30, 11, 52, 4] * 8]).tolist()
    path = write_video(tmp_path / "a.gif", pts, Fraction(1, 100), codec="gif", pix_fmt="rgb8")
    numbers, duration_s, warnings = read(path)
    times_s = [value / 100 for value in pts]
    assert duration_s >= times_s[-1]
    assert (numbers, warnings) == (expected(times_s, duration_s), [])
    numbers, duration_s, warnings = read(VIDEOS / "ani.gif")
    assert (numbers, duration_s, warnings) == ([[6, 18, 31, 43], [56, 68, 81, 93]], pytest.approx(4.0), [])


def test_av1(tmp_path: Path) -> None:
    names = [name for name in ("libsvtav1", "libaom-av1") if name in av.codec.codecs_available]
    if not names:
        pytest.skip("this PyAV has no AV1 encoder")
    path = write_video(tmp_path / "a.mkv", list(range(250)), TICK, codec=names[0], size=(128, 96))
    assert read(path) == (FILM, pytest.approx(10.0, abs=0.01), [])


def test_pictures_with_alpha(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mov", list(range(250)), TICK, codec="qtrle", pix_fmt="argb")
    assert read(path) == (FILM, pytest.approx(10.0), [])


# ---------------------------------------------------------------- how pictures are shown


def test_a_mirror_is_followed_in_clips_and_key_frames() -> None:
    mirrored, _ = read_clips(VIDEOS / "hflip.mp4", make_spec())
    plain, _ = read_clips(VIDEOS / "ref.mp4", make_spec())
    np.testing.assert_array_equal(mirrored, plain[:, :, :, ::-1])
    pictures = [jpeg_picture(key_frames(VIDEOS / name, [2.0], 48)[0]) for name in ("hflip.mp4", "ref.mp4")]
    assert np.abs(pictures[0].astype(int) - pictures[1][:, ::-1]).mean() < 3


def jpeg_picture(jpeg: bytes) -> np.ndarray:
    with av.open(io.BytesIO(jpeg), format="jpeg_pipe") as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


def state_matrix(path: Path, a: float, b: float, c: float, d: float) -> Path:
    content = path.read_bytes()
    start = content.index(b"tkhd") + 4 + 40
    fixed = [round(value * 65536) for value in (a, b, 0, c, d, 0, 0, 0)]
    return write(path, content[:start] + struct.pack(">9i", *fixed, 1 << 30) + content[start + 36 :])


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


UPRIGHT: dict[tuple[int, int, int, int], Callable[[np.ndarray], np.ndarray]] = {  # of pictures [..., S, S, 3]
    (1, 0, 0, 1): lambda p: p,
    (-1, 0, 0, 1): lambda p: np.flip(p, -2),
    (1, 0, 0, -1): lambda p: np.flip(p, -3),
    (-1, 0, 0, -1): lambda p: np.flip(p, (-2, -3)),
    (0, 1, -1, 0): lambda p: np.rot90(p, -1, (-3, -2)),  # clockwise, as a phone held upright states it
    (0, -1, 1, 0): lambda p: np.rot90(p, 1, (-3, -2)),
    (0, 1, 1, 0): lambda p: np.swapaxes(p, -3, -2),
    (0, -1, -1, 0): lambda p: np.flip(np.swapaxes(p, -3, -2), (-2, -3)),
}


@pytest.mark.parametrize("matrix", UPRIGHT)
def test_the_eight_display_matrices(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    raw, _ = read_clips(VIDEOS / "ref.mp4", make_spec())
    path = state_matrix(Path(shutil.copyfile(VIDEOS / "ref.mp4", tmp_path / "a.mp4")), *matrix)
    stream = ClipStream(path, make_spec())
    np.testing.assert_array_equal(np.concatenate(list(stream)), UPRIGHT[matrix](raw))
    assert stream.warnings == []


def test_a_matrix_of_another_kind_is_said(tmp_path: Path) -> None:
    path = state_matrix(Path(shutil.copyfile(VIDEOS / "ref.mp4", tmp_path / "a.mp4")), 0.8, 0.6, -0.6, 0.8)
    numbers, _, warnings = read(path)
    assert numbers == FILM
    assert [line.startswith(f"{path}: asks to be shown in a way that is not followed") for line in warnings] == [True]


@pytest.mark.parametrize(
    ("edge", "element"), [("left", 0x54CC), ("right", 0x54DD), ("top", 0x54BB), ("bottom", 0x54AA)]
)
def test_a_crop_is_followed(tmp_path: Path, edge: str, element: int) -> None:
    """16 pixels that the container cuts, in the place of Matroska's DisplayUnit."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "5"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        for i in range(50):
            picture = np.add.outer(3 * np.arange(48), np.arange(64))[..., None].repeat(3, axis=2)
            frame = av.VideoFrame.from_ndarray(picture.astype(np.uint8), format="rgb24")
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    plain, _ = read_clips(path, make_spec())
    with av.open(str(path)) as container:
        whole = next(container.decode(video=0)).to_ndarray(format="rgb24")
    data = path.read_bytes()
    assert data.count(b"\x54\xb2\x81\x04") == 1
    path.write_bytes(data.replace(b"\x54\xb2\x81\x04", element.to_bytes(2, "big") + b"\x81\x10"))
    kept = {"left": whole[:, 16:], "right": whole[:, :-16], "top": whole[16:], "bottom": whole[:-16]}[edge]
    want = av.VideoFrame.from_ndarray(np.ascontiguousarray(kept), format="rgb24")
    want = want.reformat(32, 32, "rgb24", interpolation="BICUBIC").to_ndarray()
    clips, _ = read_clips(path, make_spec())
    assert np.abs(clips[0, 0].astype(int) - want).max() <= 2
    assert np.abs(clips[0, 0].astype(int) - plain[0, 0]).mean() > 5
    (jpeg,) = key_frames(path, [0.0], 48)
    height, width, _ = jpeg_picture(jpeg).shape
    assert (width, height) == (round(48 * kept.shape[1] / kept.shape[0]), 48)


def test_the_stream_flagged_default_is_the_film() -> None:
    path = VIDEOS / "two.mkv"
    said = f"{path}: has 2 video streams: took stream 1 (64x48, flagged default) and left 0 (64x48)"
    assert read(path) == (FILM, pytest.approx(10.0), [said])


def test_of_streams_alike_the_largest_is_the_film(tmp_path: Path) -> None:
    path = tmp_path / "a.ts"
    with av.open(str(path), "w") as container:
        sizes = [(32, 32), (64, 48)]
        streams = [container.add_stream("libx264", rate=25, options={"crf": "10"}) for _ in sizes]
        for stream, (width, height) in zip(streams, sizes):
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(250):
            for stream, size in zip(streams, sizes):
                frame = av.VideoFrame.from_ndarray(numbered(i if size == sizes[1] else 0, *size), format="rgb24")
                frame.pts = i
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    numbers, _, warnings = read(path)
    assert numbers == FILM
    assert any("has 2 video streams: took stream 1 (64x48" in line for line in warnings)


# ---------------------------------------------------------------- faults


def write_noise(path: Path) -> Path:
    """Large enough to be read in many pieces."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"qp": "20", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(60):
            frame = av.VideoFrame.from_ndarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8), format="rgb24")
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.avi", "a.flv"])
def test_a_read_that_fails_fails_the_video(tmp_path: Path, name: str) -> None:
    """Once, in the middle; the disk answers again afterwards."""
    path = write_noise(tmp_path / name)
    reads = bad_read = 0

    class Device(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes | None:
            nonlocal reads
            reads += 1
            if reads == bad_read:
                raise OSError(errno.EIO, "Input/output error")
            return super().read(size)

    LocalFile.__bases__ = (Device,)
    try:
        read_clips(path, make_spec(0.5))
        assert reads > 5
        for number in range(1, reads + 1):
            reads, bad_read = 0, number
            with pytest.raises(InputError, match=r"could not be read to its end \(Input/output error\)"):
                read_clips(path, make_spec(0.5))
    finally:
        LocalFile.__bases__ = (io.FileIO,)


@pytest.mark.parametrize("position", [120, 249])
@pytest.mark.parametrize("bad_s", [2420.0, 300.0])
def test_one_bad_time_does_not_make_a_video_longer(tmp_path: Path, position: int, bad_s: float) -> None:
    pts = list(range(250))
    pts[position] = round(25 * bad_s)
    path = write_unordered(tmp_path / "a.nut", pts)
    numbers, duration_s, warnings = read(path)
    assert (numbers, duration_s) == (FILM, pytest.approx(10.0, abs=0.2))
    assert len([line for line in warnings if "timestamp" in line or "came far too late" in line]) == 1


def write_unordered(path: Path, pts: list[int]) -> Path:
    """Pictures of their own each, with stamps as they come: no encoder between."""
    with av.open(str(path), "w", format="nut") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        stream.time_base = TICK
        packets = []
        for i in range(len(pts)):
            frame = av.VideoFrame.from_ndarray(numbered(i), format="rgb24").reformat(format="yuvj420p")
            frame.pts, frame.time_base = i, TICK
            packets += stream.encode(frame)
        packets += stream.encode(None)
        for packet, value in zip(packets, pts, strict=True):
            packet.pts, packet.dts = value, packet.dts
            container.mux(packet)
    return path


def test_pictures_an_hour_apart_are_no_day_of_video(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [3500 * i for i in range(20)], Fraction(1))
    stream = ClipStream(path, make_spec())
    assert sum(map(len, stream)) <= 20
    assert any("timestamps jumped (back, or by more than 600 s)" in line for line in stream.warnings)


def test_a_still_picture_of_minutes_stays(tmp_path: Path) -> None:
    """A screen recording writes a frame when something changes."""
    pts = [*range(100), *range(5100, 5150)]
    numbers, duration_s, warnings = read(write_video(tmp_path / "a.mp4", pts, TICK))
    assert duration_s == pytest.approx(206.0, abs=1.5)
    assert numbers == expected([value / 25 for value in pts], duration_s)
    assert any("1 times no frame came for long" in line for line in warnings)


def write_sound_too(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        video, sound = container.add_stream("libx264", rate=25), container.add_stream("aac", rate=48000)
        video.width, video.height, video.pix_fmt, sound.layout = 64, 48, "yuv420p", "mono"
        for i in range(50):
            frame = av.VideoFrame.from_ndarray(numbered(i), format="rgb24")
            frame.pts = i
            container.mux(video.encode(frame))
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.sample_rate, silence.pts = 48000, 1024 * i
            container.mux(sound.encode(silence))
        container.mux(video.encode(None))
        container.mux(sound.encode(None))
    return path


def test_a_stream_that_appears_on_the_way(tmp_path: Path) -> None:
    alone = write_video(tmp_path / "1.ts", list(range(250)), TICK).read_bytes()
    both = write_sound_too(tmp_path / "2.ts").read_bytes()
    path = write(tmp_path / "a.ts", alone * 60 + both)
    for _ in range(3):
        numbers, duration_s, _ = read(path)
        assert (numbers[:4], duration_s) == (FILM[:4], pytest.approx(602.0, abs=6.0))


@pytest.mark.parametrize("error", [IndexError("list index out of range"), RuntimeError("two\nlines"), MemoryError()])
def test_whatever_goes_wrong_is_one_line_of_one_video(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr("sdst_runtime.media.frames.film", broken)
    (found,) = decode_pieces(7, VIDEOS / "ref.mp4", make_spec(), 1)
    assert isinstance(found, Unusable)
    assert found.video == 7
    assert found.reason.startswith(f"{VIDEOS / 'ref.mp4'}: cannot be decoded ({type(error).__name__}")
    assert "\n" not in found.reason
    monkeypatch.setattr(ClipStream, "__iter__", broken)
    (found,) = decode_pieces(7, VIDEOS / "ref.mp4", make_spec(), 1)
    assert isinstance(found, Unusable)
    assert "\n" not in found.reason


SCRIPTS = {
    "HLS": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{other}\n#EXT-X-ENDLIST\n",
    "ffconcat": "ffconcat version 1.0\nfile {other}\n",
    "DASH": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>'
    "<AdaptationSet><Representation><BaseURL>{other}</BaseURL></Representation></AdaptationSet></Period></MPD>\n",
    "SDP": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n",
}


@pytest.mark.parametrize("name", ["a.mp4", "a.m3u8", "a.ffconcat", "a.mpd", "a.sdp", "a.avi"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_no_videos_whatever_their_name(tmp_path: Path, script: str, name: str) -> None:
    write_video(tmp_path / "secret.ts", list(range(50)), TICK)
    path = write(tmp_path / name, SCRIPTS[script].format(other="secret.ts").encode())
    for use in (lambda: read_clips(path, make_spec()), lambda: key_frames(path, [0.0], 48)):
        with pytest.raises(InputError, match="not a video that can be read"):
            use()


def test_the_digest_of_a_source(tmp_path: Path) -> None:
    small, copy = VIDEOS / "ref.mp4", tmp_path / "ref.mp4"
    shutil.copyfile(small, copy)
    assert source_digest(copy) == source_digest(small) != ""
    write(copy, small.read_bytes()[:-1] + b"x")
    assert source_digest(copy) != source_digest(small)
    large = write(tmp_path / "large", np.random.default_rng(0).bytes(5_000_001))
    before = source_digest(large)
    assert before.startswith("5000001 bytes, sha256 ")
    write(large, large.read_bytes()[:-1] + b"xy"[large.read_bytes()[-1:] == b"x" :][:1])
    assert source_digest(large) != before
    assert (source_digest(tmp_path), source_digest(tmp_path / "none")) == ("", "")


def test_frames_do_not_wait_for_the_garbage_collector():
    """In circles of references they would pile up in hundreds, each with its picture, before Python looks for them."""
    read(VIDEOS / "ref.mp4")  # what is imported once
    gc.collect()
    gc.disable()
    try:
        read(VIDEOS / "ref.mp4")
        left = [thing for thing in gc.get_objects() if isinstance(thing, av.VideoFrame)]
    finally:
        gc.enable()

    assert left == []
