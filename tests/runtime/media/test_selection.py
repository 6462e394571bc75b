"""Frames that are not decoded change no picture, no time and no warning: both ways of reading a video side by side."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from places import DATA
from test_media import make_spec, vfr_pts

from sdst_runtime.errors import InputError
from sdst_runtime.media import frames
from sdst_runtime.media.clips import ClipStream, decoder_name, key_frames
from sdst_runtime.media.hardware import VARIABLE
from sdst_runtime.media.references import Role, reader_of
from sdst_runtime.media.selection import Chosen, EveryFrameNeeded, Merged, Selection

TICK = Fraction(1, 25)
COUNT = 130


def picture(number: int) -> np.ndarray:
    """A textured ground that moves, another one every 50 pictures: uint8 [96, 128, 3]."""
    ground = np.random.default_rng(number // 50).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    ground = av.VideoFrame.from_ndarray(ground, format="rgb24").reformat(200, 160, "rgb24").to_ndarray()
    top, left = round(30 + 30 * np.sin(number / 17)), round(36 + 36 * np.cos(number / 23))
    return np.ascontiguousarray(ground[top : top + 96, left : left + 128])


PICTURES = [picture(i) for i in range(COUNT)]


def write(
    path: Path, encoder: str, options: dict[str, str], pts: list[int] | None = None, tick: Fraction = TICK
) -> Path:
    try:
        av.Codec(encoder, "w")
    except ValueError:
        pytest.skip(f"this PyAV has no encoder {encoder}")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt, stream.codec_context.time_base = 128, 96, "yuv420p", tick
        for pixels, value in zip(PICTURES, pts or range(COUNT)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = value, tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Stamps of the packets that selections gave to a decoder, and -1 for each that had to give up."""
    found: list[int] = []
    choose, select = Selection.of, frames._selected

    def of(self, packets):
        for chosen in choose(self, packets):
            found.extend([chosen.stamp] if chosen.is_decoded else [])
            yield chosen

    def selected(*args):
        try:
            yield from select(*args)
        except EveryFrameNeeded:
            found.append(-1)
            raise

    monkeypatch.setattr(Selection, "of", of)
    monkeypatch.setattr(frames, "_selected", selected)
    return found


def require_same(path: Path, clip_s: float = 2.0, samples: int = 1, batch: int = 16) -> list[str]:
    """Warnings, which are those of decoding everything, as are clips and times."""
    some, every = (
        ClipStream(path, make_spec(clip_s, samples), batch=batch, every_frame=every) for every in (False, True)
    )
    for clips, others in zip(some, every, strict=True):
        np.testing.assert_array_equal(clips, others)
    assert (some.duration_s, some.clips, some.warnings) == (every.duration_s, every.clips, every.warnings)
    return some.warnings


X264, X265 = {"preset": "veryfast"}, {"preset": "ultrafast"}
CASES: dict[str, tuple[str, dict[str, str], int]] = {  # encoder, options, most packets of 130 that are decoded
    "H.264": ("libx264", X264, 80),
    "H.264, many B-frames": ("libx264", X264 | {"bf": "8", "x264-params": "b-pyramid=none:b-adapt=0"}, 30),
    "H.264, no B-frames, groups of 10": ("libx264", X264 | {"bf": "0", "g": "10"}, 60),
    "H.264, groups of 10": ("libx264", X264 | {"g": "10"}, 40),
    "H.264, open groups": ("libx264", X264 | {"g": "10", "x264-params": "open-gop=1"}, 90),
    "H.264, no groups": ("libx264", X264 | {"x264-params": "intra-refresh=1:keyint=30"}, 90),
    "H.264, headers in each group": ("libx264", X264 | {"g": "10", "x264-params": "repeat-headers=1:aud=1"}, 50),
    "H.264, slices": ("libx264", X264 | {"g": "25", "x264-params": "slices=4"}, 60),
    "H.264, every frame a key": ("libx264", X264 | {"g": "1"}, 8),
    "HEVC": ("libx265", X265 | {"x265-params": "log-level=none"}, 80),
    "HEVC, closed groups": ("libx265", X265 | {"x265-params": "log-level=none:keyint=12:open-gop=0"}, 50),
    "HEVC, open groups": ("libx265", X265 | {"x265-params": "log-level=none:keyint=12"}, 80),
    "HEVC, temporal layers": ("libx265", X265 | {"x265-params": "log-level=none:temporal-layers=3"}, 130),
    "HEVC, short counts of pictures": (
        "libx265", X265 | {"x265-params": "log-level=none:keyint=12:open-gop=0:log2-max-poc-lsb=4"}, 50,
    ),
    "AV1": ("libsvtav1", {"preset": "10"}, 110),
    "AV1, groups of 20": ("libsvtav1", {"preset": "10", "g": "20"}, 90),
    "AV1 of libaom": ("libaom-av1", {"cpu-used": "8", "g": "20", "lag-in-frames": "10"}, 100),
    "VP9": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "g": "15"}, 80),
}  # fmt: skip


@pytest.mark.parametrize(
    ("case", "suffix"),
    [*((case, "mp4") for case in CASES), *((case, "mkv") for case in ("H.264", "HEVC, closed groups", "AV1", "VP9"))],
)
def test_pictures_are_those_of_decoding_everything(tmp_path: Path, decoded: list[int], case: str, suffix: str) -> None:
    encoder, options, most = CASES[case]
    path = write(tmp_path / f"a.{suffix}", encoder, options)
    assert require_same(path) == []
    assert -1 not in decoded
    assert 3 <= len(decoded) <= most
    assert require_same(path, 1.0, 3) == []


def test_a_variable_rate(tmp_path: Path, decoded: list[int]) -> None:
    path = write(tmp_path / "a.mp4", "libx264", X264 | {"g": "20"}, vfr_pts(COUNT, 2), Fraction(1, 90000))
    assert require_same(path, 3.0) == []
    assert -1 not in decoded
    assert len(decoded) < COUNT / 2


def test_a_group_longer_than_what_waits(tmp_path: Path, decoded: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdst_runtime.media.selection._MOST_PACKETS", 40)
    path = write(tmp_path / "a.mp4", "libx264", X264)
    assert require_same(path) == []
    assert len(decoded) < 100


ODD = {
    "stamps that count packets": lambda data: data.replace(b"ctts", b"free").replace(b"edts", b"free"),
    "interlaced": lambda data: data,
    "cut off": lambda data: data[: len(data) * 2 // 3],
    "an edit list": lambda data: edited(data),
}


def edited(data: bytes) -> bytes:
    """With its first second cut off by the edit list: 12,800 ticks a second."""
    place = data.index(b"elst") + 16
    start = int.from_bytes(data[place : place + 4], "big")
    return data[:place] + (start + 12800).to_bytes(4, "big") + data[place + 4 :]


@pytest.mark.parametrize("case", ODD)
def test_what_is_odd_is_decoded_whole(tmp_path: Path, case: str) -> None:
    options = X264 | {"g": "20", "movflags": "faststart"}
    if case == "interlaced":
        options |= {"x264-params": "interlaced=1"}
    path = write_faststart(tmp_path / "a.mp4", options)
    path.write_bytes(ODD[case](path.read_bytes()))
    require_same(path)
    require_same(path, 0.5, 2, batch=1)


def write_faststart(path: Path, options: dict[str, str]) -> Path:
    plain = write(path.with_name("plain.mp4"), "libx264", options)
    with av.open(str(plain)) as source, av.open(str(path), "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    return path


@pytest.mark.parametrize("place", [0.5, 0.7, 0.9])
def test_damage_is_met_as_before(tmp_path: Path, place: float, decoded: list[int]) -> None:
    """Clips that were given before it came to light stay, the rest is that of decoding everything."""
    path = write(tmp_path / "a.mp4", "libx264", X264 | {"bf": "0"})
    data = bytearray(path.read_bytes())
    where = data.index(b"mdat") + round(place * (data.index(b"moov") - data.index(b"mdat")))
    data[where : where + 60] = bytes(60)
    path.write_bytes(data)
    require_same(path, 0.5, 1, batch=1)
    assert -1 in decoded


@pytest.mark.parametrize("name", sorted(path.name for path in (DATA / "videos").iterdir()))
def test_odd_files(name: str) -> None:
    require_same(DATA / "videos" / name)
    require_same(DATA / "videos" / name, 1.0, 3, batch=2)


def test_key_frames_far_apart_decode_their_own_groups(tmp_path: Path, decoded: list[int]) -> None:
    path = write(tmp_path / "a.mp4", "libx264", X264 | {"g": "10"})
    times_s = [4.9, 0.0, 2.02, 99.0]
    pictures = key_frames(path, times_s, 48)
    assert len(decoded) < 30
    every = list(frames.shown_frames(path, 0, []))
    assert all(shown.frame is not None for shown in every)
    assert len(every) == COUNT
    assert pictures == [key_frames(path, [*np.arange(0, 6, 0.04), time_s], 48)[-1] for time_s in times_s]


# ---------------------------------------------------------------- packets that no file has


class Packet(bytes):
    """One as PyAV's, of these bytes."""

    pts: int | None
    is_corrupt = is_discard = False
    news = ""

    def __new__(cls, data: bytes, pts: int | None = 0) -> Packet:
        packet = super().__new__(cls, data)
        packet.pts = pts
        return packet

    @property
    def size(self) -> int:
        return len(self)

    def iter_sidedata(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(data_type=self.news)] if self.news else []


def chosen_of(packets: list[Packet], is_real: bool = True, reorders: bool = True) -> list[Chosen]:
    """By letters: B begins, D is disposable, S states something, P is none of it. Wanted: what is shown at 0.55 s."""
    roles = {b"B": Role(begins=True, states=False), b"D": Role(disposable=True, states=False), b"S": Role()}

    def read(data: memoryview) -> Role:
        return roles.get(bytes(data), Role(states=False))

    selection = Selection(read, lambda start_s, end_s: start_s <= 0.55 < end_s, Fraction(1, 10), reorders, is_real)
    return list(selection.of(packets))  # pyright: ignore[reportArgumentType]


def letters(text: str) -> list[Packet]:
    return [Packet(letter.encode(), pts) for pts, letter in enumerate(text)]


@pytest.mark.parametrize(
    ("text", "is_real", "reorders", "decoded"),
    [
        ("BPPPPPPPPP", True, True, "BPPPPPPPPP"),  # the last one is always looked at
        ("BPDPDPDPDB", True, True, "BP.P.P...B"),
        ("BPDPDPDPDB", False, True, "BPDPDPDPDB"),
        ("BPDPDPDPDB", False, False, "BPDPDP...B"),
        ("BPBPPPDPDB", True, True, "B.BPPP...B"),
        ("BPBPDPSPDB", True, True, "B.BP.PS..B"),
        ("BPPSBPPPBD", True, True, "BPPSBP..BD"),
    ],
)
def test_what_is_decoded(text: str, is_real: bool, reorders: bool, decoded: str) -> None:
    found = chosen_of(letters(text), is_real, reorders)
    assert "".join(letter if each.is_decoded else "." for letter, each in zip(text, found, strict=True)) == decoded
    assert [each.stamp for each in found if each.is_looked_at] == [0, 5, 9]


@pytest.mark.parametrize("fault", ["no stamp", "corrupt", "discard", "headers", "twice", "leap"])
def test_what_is_odd_about_packets(fault: str) -> None:
    packets = letters("BPPPPPPB")
    packets[3].pts = {"no stamp": None, "twice": 2, "leap": 30}.get(fault, 3)
    packets[3].is_corrupt, packets[3].is_discard = fault == "corrupt", fault == "discard"
    packets[3].news = "new_extradata" if fault == "headers" else ""
    with pytest.raises(EveryFrameNeeded):
        chosen_of(packets)


def test_frames_that_do_not_come_as_they_should() -> None:
    def merged(*stamps: int) -> list[tuple[bool, int]]:
        merged, found = Merged(), []
        for packet, is_looked_at in zip(letters("BPPP"), (True, False, True, False)):
            merged.feed(Chosen(packet, packet.pts or 0, is_looked_at, is_looked_at))  # pyright: ignore[reportArgumentType]
        for stamp in stamps:
            frame = av.VideoFrame(16, 16, "yuv420p")
            frame.pts = stamp
            found += [(frame is not None, stamp) for frame, stamp in merged.take(frame)]
        return found + [(frame is not None, stamp) for frame, stamp in merged.rest()]

    assert merged(0, 2) == [(True, 0), (False, 1), (True, 2), (False, 3)]
    for stamps in [(0,), (0, 3), (0, 2, 1), (0, 2, 7), (2,)]:
        with pytest.raises(EveryFrameNeeded):
            merged(*stamps)


# ---------------------------------------------------------------- headers


class Codec:
    def __init__(self, name: str, extradata: bytes | None) -> None:
        self.name, self.extradata = name, extradata


def role(name: str, extradata: bytes, data: bytes) -> Role:
    reader = reader_of(Codec(name, extradata))  # pyright: ignore[reportArgumentType]
    assert reader is not None
    return reader(memoryview(data))


def units(*headers: str) -> bytes:
    """NAL units that begin with these bytes, their lengths before them in four bytes."""
    return b"".join(len(data).to_bytes(4, "big") + data for data in (bytes.fromhex(text) + b"\x80" for text in headers))


AVC = bytes.fromhex("01640028ffe10000")
HVC = bytes.fromhex("01") + bytes(20) + bytes([0b00001111]) + bytes(2)  # one temporal layer, lengths of 4 bytes


@pytest.mark.parametrize(
    ("name", "extradata", "data", "expected"),
    [
        ("h264", AVC, units("65", "65"), Role(begins=True, states=False)),
        ("h264", AVC, units("67", "68", "65"), Role(begins=True, states=True)),
        ("h264", AVC, units("41"), Role(states=False)),
        ("h264", AVC, units("0900", "0600", "01", "01"), Role(disposable=True, states=False)),
        ("h264", AVC, units("01", "21"), Role(states=False)),
        ("h264", AVC, units("68", "01"), Role(disposable=True, states=True)),
        ("h264", AVC, units("0600"), Role()),
        ("h264", AVC, units("01")[:-1], Role()),
        ("h264", AVC, b"\0\0\0\1\x65", Role()),
        ("hevc", HVC, units("2601"), Role(begins=True, states=False)),  # IDR_W_RADL
        ("hevc", HVC, units("2a01"), Role(states=False)),  # CRA
        ("hevc", HVC, units("0201"), Role(states=False)),  # TRAIL_R
        ("hevc", HVC, units("0001", "1001"), Role(disposable=True, states=False)),  # TRAIL_N, RASL_N
        ("hevc", HVC, units("4401", "0001"), Role(disposable=True, states=True)),  # a PPS before it
        ("hevc", HVC, units("420102", "0001"), Role(states=True)),  # an SPS of two temporal layers
        ("hevc", HVC, units("0009"), Role()),  # another layer
        ("hevc", HVC[:21] + b"\x17" + HVC[22:], units("0001"), Role(states=False)),
        ("vp9", b"", b"\x82", Role(begins=True, states=False)),
        ("vp9", b"", b"\x86", Role(states=False)),
        ("vp9", b"", b"\x80", Role(states=False)),  # not shown
    ],
)
def test_roles(name: str, extradata: bytes, data: bytes, expected: Role) -> None:
    assert role(name, extradata, data) == expected


def test_other_codecs_and_forms_are_not_read() -> None:
    for name, extradata in [("mpeg4", b""), ("h264", b"\0\0\0\1\x67"), ("hevc", None), ("vp8", None)]:
        assert reader_of(Codec(name, extradata)) is None  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("name", "extradata"), [("h264", AVC), ("hevc", HVC), ("libdav1d", b""), ("vp9", b"")])
def test_noise_is_read_without_an_error(name: str, extradata: bytes) -> None:
    rng = np.random.default_rng(0)
    for size in [*range(40), *rng.integers(40, 400, 200)]:
        data = bytearray(rng.bytes(int(size)))
        data[:1] = b"\x12" if name == "libdav1d" and size % 2 else data[:1]
        assert isinstance(role(name, extradata, bytes(data)), Role)


# ---------------------------------------------------------------- devices


def test_a_device_that_takes_no_stream_leaves_it_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    path = DATA / "videos" / "ref.mp4"
    plain = np.concatenate(list(ClipStream(path, make_spec())))
    name = decoder_name()
    monkeypatch.setenv(VARIABLE, "drm")  # in every build of FFmpeg for Linux, and no decoder of H.264
    stream = ClipStream(path, make_spec())
    np.testing.assert_array_equal(np.concatenate(list(stream)), plain)
    assert stream.warnings == [f"{path}: decoded on the CPU, as drm takes no h264"]
    assert decoder_name() == f"{name} drm"


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = DATA / "videos" / "ref.mp4"
    monkeypatch.setenv(VARIABLE, "cuda:99")
    with pytest.raises(
        InputError, match=rf"^{VARIABLE}=cuda:99: the device cannot be used \([^\n]*\); check it [^\n]*$"
    ):
        list(ClipStream(path, make_spec()))
    broken = tmp_path / "a.mp4"
    broken.write_bytes(b"this is not a video\n" * 50)
    with pytest.raises(InputError, match="not a video that can be read"):
        list(ClipStream(broken, make_spec()))
    monkeypatch.setenv(VARIABLE, "abacus")
    with pytest.raises(InputError, match=rf"^{VARIABLE}: expected one of [^\n]*cuda[^\n]*, got 'abacus'; unset it"):
        list(ClipStream(path, make_spec()))
