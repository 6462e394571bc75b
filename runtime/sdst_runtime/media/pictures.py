"""Decoded frames as pictures: cropped, turned and mirrored as players show them, in RGB; and as JPEG.

Matrix and range of the colours are those that a frame states (a stream without them is BT.601 in narrow range, as for
FFmpeg). Sizes are in pixels.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError, require_package

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

FILTERS = {"bicubic": "BICUBIC", "bilinear": "BILINEAR", "area": "AREA", "lanczos": "LANCZOS"}
_UNSPECIFIED, _RESERVED = 2, 3  # code points that H.273 gives to colour spaces, transfers and primaries alike
_NO_CROP = (0, 0, 0, 0)
_SMALL = 640 * 480  # pixels of a frame whose scaling is over before other threads have woken


@dataclass(frozen=True)
class Turn:
    """One of the eight ways to lay a picture: exchange rows and columns, then mirror."""

    transposed: bool = False
    flip_columns: bool = False  # left and right
    flip_rows: bool = False  # top and bottom
    is_exact: bool = True  # False for a matrix that is none of the eight: the nearest was taken

    def apply(self, picture: np.ndarray) -> np.ndarray:
        """[H, W, 3] as it is shown."""
        picture = picture.swapaxes(0, 1) if self.transposed else picture
        return picture[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]


def turn_of(frame: VideoFrame) -> Turn:
    """The frame's display matrix: x' = a x + c y, y' = b x + d y, x to the right and y down."""
    side_data = require_package("av.sidedata.sidedata", "")
    # Not frame.side_data, which the frame keeps and which keeps the frame: a circle that holds its pictures in memory
    # until Python looks for circles, hundreds of frames later.
    matrix = side_data.SideDataContainer(frame).get("DISPLAYMATRIX")
    if matrix is None or len(bytes(matrix)) < 36:
        return Turn()
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix)[:36])
    kept, exchanged = math.hypot(a, d), math.hypot(b, c)
    if kept == exchanged == 0:
        return Turn(is_exact=False)
    small, large = sorted((kept, exchanged))
    x, y = (c, b) if exchanged > kept else (a, d)
    is_exact = small <= 0.01 * large and abs(abs(x) - abs(y)) <= 0.01 * large
    return Turn(exchanged > kept, x < 0, y < 0, is_exact)


def shown_aspect(frame: VideoFrame, pixel_aspect: float, crop: tuple[int, int, int, int] = _NO_CROP) -> float:
    """Width over height of the picture as it is shown."""
    left, right, top, bottom = crop
    aspect = (frame.width - left - right) / (frame.height - top - bottom) * pixel_aspect
    return 1 / aspect if turn_of(frame).transposed else aspect


def upright_rgb(
    path: Path,
    reformatter: Any,
    frame: VideoFrame,
    size: tuple[int, int],
    resize: str,
    crop: tuple[int, int, int, int] = _NO_CROP,
) -> np.ndarray:
    """The frame scaled to (width, height) of the picture as it is shown: uint8 [height, width, 3], RGB.

    Raises InputError when its colours cannot be turned into RGB.
    """
    turn = turn_of(frame)
    width, height = reversed(size) if turn.transposed else size
    if hasattr(frame, "color_trc"):  # neither is converted, and PyAV 17 refuses frames with odd ones
        frame.color_trc = frame.color_primaries = _UNSPECIFIED
    if frame.colorspace == _RESERVED:
        frame.colorspace = _UNSPECIFIED
    try:
        if crop != _NO_CROP:
            frame = _cropped(reformatter, frame, crop)
        threads = 1 if frame.width * frame.height <= _SMALL else 0  # 0: one a core
        scaled = reformatter.reformat(frame, width, height, "rgb24", interpolation=FILTERS[resize], threads=threads)
        return turn.apply(scaled.to_ndarray())
    except Exception as error:  # a foreign library, on pictures from anywhere
        kind = f"{frame.format.name}, colour space {int(frame.colorspace)} of H.273"
        raise InputError(
            f"{path}: its pictures ({kind}) cannot be turned into RGB ({error}); convert it to H.264 in BT.709"
        ) from error


def _cropped(reformatter: Any, frame: VideoFrame, crop: tuple[int, int, int, int]) -> VideoFrame:
    """What is left of the frame, in RGB; chroma planes cannot be cut at every pixel."""
    av = require_package("av", "")
    left, right, top, bottom = crop
    whole = reformatter.reformat(frame, frame.width, frame.height, "rgb24").to_ndarray()
    rest = whole[top : frame.height - bottom, left : frame.width - right]
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(rest), format="rgb24")


def encode_jpeg(picture: np.ndarray) -> bytes:
    """uint8 [H, W, 3] RGB as a JPEG file."""
    av = require_package("av", "")
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24").reformat(format="yuvj420p")
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt = frame.width, frame.height, "yuvj420p"
    encoder.time_base = Fraction(1, 25)
    encoder.options = {"qmin": "2", "qmax": "4"}
    frame.pts = 0
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])
