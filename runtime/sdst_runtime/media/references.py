"""What a packet's pictures are to those of other packets, read from the first bytes of their headers.

Nothing is decoded here. Of H.264 (ITU-T H.264, 7.3.1), HEVC (H.265, 7.3.1.2) and AV1 (its specification, 5.5 and 5.9.2)
both facts of a `Role` are read, of VP9 where decoding can begin. Whatever is not understood is an ordinary packet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av.video.codeccontext import VideoCodecContext


@dataclass(frozen=True)
class Role:
    """What a packet is to the others; the default is safe for any."""

    begins: bool = False  # its pictures and all later ones refer to nothing before it
    disposable: bool = False  # no picture of another packet refers to its pictures
    states: bool = True  # it says, or may say, something that other packets need beside pictures


Reader = Callable[[memoryview], Role]

_AV1_DECODERS, _VP9_DECODERS = ("av1", "libdav1d", "libaom-av1"), ("vp9", "libvpx-vp9")
IN_ORDER = _AV1_DECODERS + _VP9_DECODERS  # decoders that put out a packet's frame before the next packet's


def reader_of(codec: VideoCodecContext) -> Reader | None:
    """What reads the packets of a stream as mp4 and Matroska hold them; None for codecs that are not read here."""
    stated = codec.extradata or b""
    if codec.name == "h264" and len(stated) > 6 and stated[0] == 1:  # avcC
        return _H264((stated[4] & 3) + 1)
    if codec.name == "hevc" and len(stated) > 22 and stated[0] == 1:  # hvcC
        return _Hevc((stated[21] & 3) + 1, layers=stated[21] >> 3 & 7)
    if codec.name in _AV1_DECODERS:
        return _Av1(stated[4:] if stated[:1] == b"\x81" else b"")  # av1C
    return _vp9 if codec.name in _VP9_DECODERS else None


# ---------------------------------------------------------------- H.264 and HEVC

_H264_SLICE, _H264_IDR, _H264_HARMLESS = 1, 5, (6, 9, 12)  # SEI, delimiter, filler
_HEVC_UNREFERENCED = (0, 2, 4, 6, 8)  # TRAIL_N, TSA_N, STSA_N, RADL_N, RASL_N: by none of their own temporal layer
_HEVC_SLICES, _HEVC_IDR, _HEVC_HARMLESS = (*range(10), *range(16, 22)), (19, 20), (35, 38, 39, 40)
_HEVC_SPS = 33


def _units(data: memoryview, length_size: int) -> Iterator[memoryview]:
    """NAL units with their lengths before them. ValueError when they do not fill the packet."""
    place = 0
    while place < len(data):
        start = place + length_size
        place = start + int.from_bytes(data[place:start], "big")
        if not start + 2 <= place <= len(data):
            raise ValueError("broken lengths")
        yield data[start:place]


@dataclass(frozen=True)
class _H264:
    length_size: int

    def __call__(self, data: memoryview) -> Role:
        slices, states = [], False
        try:
            for unit in _units(data, self.length_size):
                kind, importance = unit[0] & 31, unit[0] >> 5
                if kind in (_H264_SLICE, _H264_IDR):
                    slices.append((kind, importance))
                elif kind not in _H264_HARMLESS:
                    states = True
        except ValueError:
            return Role()
        if not slices:
            return Role()
        begins = all(kind == _H264_IDR for kind, _ in slices)
        return Role(begins, all(importance == 0 for _, importance in slices), states)


@dataclass
class _Hevc:
    length_size: int
    layers: int  # temporal ones; 0: not told

    def __call__(self, data: memoryview) -> Role:
        kinds, states = [], False
        try:
            for unit in _units(data, self.length_size):
                kind, layer = unit[0] >> 1 & 63, (unit[0] & 1) << 5 | unit[1] >> 3
                if kind in _HEVC_SLICES and layer == 0:
                    kinds.append(kind)
                elif kind not in _HEVC_HARMLESS or layer > 0:
                    states = True
                if kind == _HEVC_SPS and len(unit) > 2 and (unit[2] >> 1 & 7) > 0:
                    self.layers = 2
        except ValueError:
            return Role()
        if not kinds:
            return Role()
        unreferenced = self.layers == 1 and all(kind in _HEVC_UNREFERENCED for kind in kinds)
        return Role(all(kind in _HEVC_IDR for kind in kinds), unreferenced, states)


# ---------------------------------------------------------------- AV1 and VP9

_AV1_SEQUENCE, _AV1_DELIMITER, _AV1_HEADER, _AV1_TILES, _AV1_METADATA, _AV1_FRAME, _AV1_PADDING = 1, 2, 3, 4, 5, 6, 15
_KEY, _INTRA_ONLY, _SWITCH = 0, 2, 3  # AV1's frame types
_CHOSEN = 2  # of AV1's tools: each frame says


class _Bits:
    """Reads numbers from a header's beginning. IndexError at its end."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data, self._place = data, 0

    def __call__(self, count: int) -> int:
        value = 0
        for _ in range(count):
            value = value << 1 | self._data[self._place >> 3] >> (7 - (self._place & 7)) & 1
            self._place += 1
        return value


@dataclass(frozen=True)
class _Sequence:
    """What AV1's sequence header says that is needed to read the beginning of a frame's."""

    screen_tools: int
    whole_vectors: int
    id_bits: int
    order_bits: int


class _Av1:
    def __init__(self, stated: bytes) -> None:
        self._sequence: _Sequence | None = None
        self(memoryview(stated))

    def __call__(self, data: memoryview) -> Role:
        frames, others = [], False
        try:
            for kind, unit in _obus(data):
                if kind == _AV1_SEQUENCE:
                    self._sequence = _sequence(_Bits(unit))
                    others = True
                elif kind in (_AV1_FRAME, _AV1_HEADER):
                    frames.append(self._frame(_Bits(unit)))
                elif kind not in (_AV1_DELIMITER, _AV1_TILES, _AV1_METADATA, _AV1_PADDING):
                    others = True
        except (IndexError, ValueError):
            return Role()
        if not frames:
            return Role()
        begins = frames[0] == "begins"
        return Role(begins, frames == ["disposable"], others and not begins)  # where it begins all is stated anew

    def _frame(self, bits: _Bits) -> str:
        if bits(1):  # shows a frame that was decoded before
            return ""
        kind, is_shown = bits(2), bits(1)
        if not is_shown:
            return ""
        if kind == _KEY:
            return "begins"
        if kind == _SWITCH or self._sequence is None:
            return ""
        stated = self._sequence
        is_resilient = bits(1)
        bits(1)  # disable_cdf_update
        if bits(1) if stated.screen_tools == _CHOSEN else stated.screen_tools:
            bits(1 if stated.whole_vectors == _CHOSEN else 0)
        bits(stated.id_bits)
        bits(1 + stated.order_bits)  # frame_size_override_flag, order_hint
        bits(0 if is_resilient or kind == _INTRA_ONLY else 3)  # primary_ref_frame
        return "" if bits(8) else "disposable"  # refresh_frame_flags


def _obus(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(type, payload) of each OBU. IndexError or ValueError when they are broken or of one layer among several."""
    place = 0
    while place < len(data):
        header = data[place]
        has_extension, has_size = header & 4, header & 2
        if header & 128 or has_extension or not has_size:
            raise ValueError("not one layer, or without sizes")
        place, size, shift = place + 1, 0, 0
        while True:
            byte = data[place]
            place, size, shift = place + 1, size | (byte & 127) << shift, shift + 7
            if byte < 128:
                break
        if place + size > len(data):
            raise ValueError("cut off")
        yield header >> 3 & 15, data[place : place + size]
        place += size


def _sequence(bits: _Bits) -> _Sequence | None:
    """None for those with timing, decoder models or several operating points, which frames are then full of too."""
    bits(3 + 1)  # seq_profile, still_picture
    is_reduced, has_timing, has_delays, points = bits(1), bits(1), bits(1), bits(5)
    if is_reduced or has_timing or has_delays or points:
        return None
    bits(12)  # operating_point_idc
    bits(1 if bits(5) > 7 else 0)  # seq_level_idx, seq_tier
    width_bits, height_bits = bits(4) + 1, bits(4) + 1
    bits(width_bits + height_bits)
    id_bits = bits(4) + bits(3) + 3 if bits(1) else 0
    bits(3 + 4)  # superblocks, filter_intra, intra_edge; interintra, masked, warped, dual_filter
    has_order = bits(1)
    bits(2 if has_order else 0)  # jnt_comp, ref_frame_mvs
    screen_tools = _CHOSEN if bits(1) else bits(1)
    whole_vectors = _CHOSEN if not screen_tools or bits(1) else bits(1)
    return _Sequence(screen_tools, whole_vectors, id_bits, bits(3) + 1 if has_order else 0)


def _vp9(data: memoryview) -> Role:
    try:
        bits = _Bits(data)
        if bits(2) != 2 or bits(2) == 3:  # frame_marker; profile 3 has a bit more
            return Role()
        is_repeated, is_inter, is_shown = bits(1), bits(1), bits(1)
    except IndexError:
        return Role()
    return Role(begins=not is_repeated and not is_inter and bool(is_shown), states=False)
