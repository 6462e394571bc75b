"""Decoding by a device: which one the environment names, for every process that decodes.

SDST_HWACCEL is a kind of FFmpeg's, `cuda` or `vaapi` say, and after a colon one of several devices: `cuda:1`,
`vaapi:/dev/dri/renderD128`. A stream that the device does not take is decoded on the CPU, with a warning.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, require_package

if TYPE_CHECKING:
    from av.video.stream import VideoStream

VARIABLE = "SDST_HWACCEL"  # of the environment


def named() -> str:
    """The device that decodes, as the environment has it; empty for the CPU."""
    return os.environ.get(VARIABLE, "")


def accelerator() -> Any:
    """What `av.open` takes as `hwaccel`; None for the CPU. InputError for a kind that this FFmpeg was built without."""
    kind, _, device = named().partition(":")
    if not kind:
        return None
    hwaccel = require_package("av.codec.hwaccel", "")
    kinds = sorted(hwaccel.hwdevices_available())
    if kind not in kinds:
        raise InputError(
            f"{VARIABLE}: expected one of {', '.join(kinds)}, which this PyAV's FFmpeg was built with, or one of them "
            f"with :DEVICE, got {named()!r}; unset it to decode on the CPU"
        )
    return hwaccel.HWAccel(kind, device or None, allow_software_fallback=True)


def unusable(error: Exception) -> InputError:
    """The error of a device that a file cannot be opened with which opens without."""
    return InputError(
        f"{VARIABLE}={named()}: the device cannot be used ({getattr(error, 'strerror', None) or error}); check it and "
        f"its driver, or unset {VARIABLE} to decode on the CPU"
    )


def fallbacks(path: Path, stream: VideoStream) -> list[str]:
    """A line where a device was named and does not take the stream."""
    if not named() or stream.codec_context.is_hwaccel:
        return []
    return [f"{path}: decoded on the CPU, as {named()} takes no {stream.codec_context.name}"]
