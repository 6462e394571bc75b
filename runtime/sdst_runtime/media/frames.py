"""A video's frames in the order in which they are shown, each with the time until which it is on the screen.

Time is in seconds from the first frame.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError, SdstError
from .clock import Clock, DisplayOrder
from .containers import Display, LocalFile, display_of, film, opened
from .hardware import accelerator, fallbacks
from .pictures import turn_of
from .references import IN_ORDER, reader_of
from .selection import EveryFrameNeeded, Merged, Selection, Wants

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_PROMISE_S = 0.5  # a video that ends earlier than its header says by more than this was cut off
_MOST_STRAYS = 1000  # packets of streams that appear on the way, after which a file is given up
_SELECTED = ("mov", "matroska")  # containers whose stamps are times of frames, as a rule


@dataclass(frozen=True)
class Shown:
    """A frame and when it leaves the screen, counted from the first frame."""

    frame: VideoFrame | None  # None: it was not decoded, as nothing looks at it
    end_s: float  # the next frame's time or, for the last, the end of the video
    is_last: bool
    pixel_aspect: float  # width of a pixel over its height
    crop: tuple[int, int, int, int]  # pixels that are not shown: left, right, top, bottom


def shown_frames(path: Path, threads: int, warnings: list[str], wants: Wants | None = None) -> Iterator[Shown]:
    """Every frame in order, the last one marked. Raises InputError for files that cannot be used, whatever is wrong.

    `warnings` gets a line for each kind of damage, and for what the file asks for and does not get. `wants` says
    whether a frame is looked at that is on the screen between two times: others are decoded only where one that is
    looked at, or what is odd about the file, asks for them. Pictures and times are the same with and without; damage
    in what is not decoded is not seen.
    """
    try:
        until_s, before = 0.0, len(warnings)
        if wants is not None:
            try:
                for shown in _opened_and_shown(path, threads, warnings, wants):
                    until_s = shown.end_s
                    yield shown
                return
            except EveryFrameNeeded:
                del warnings[before:]
        for shown in _opened_and_shown(path, threads, warnings, None):
            if shown.end_s > until_s or shown.is_last:
                yield shown
    except SdstError:
        raise
    except Exception as error:  # a foreign library, on bytes from anywhere: no list of its errors would be whole
        said = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{path}: cannot be decoded ({type(error).__name__}: {said}); convert it to H.264 mp4"
        ) from error


def _opened_and_shown(path: Path, threads: int, warnings: list[str], wants: Wants | None) -> Iterator[Shown]:
    with opened(path, accelerator()) as (container, file):
        yield from _shown(path, container, file, threads, warnings, wants)


def _shown(
    path: Path, container: InputContainer, file: LocalFile, threads: int, warnings: list[str], wants: Wants | None
) -> Iterator[Shown]:
    stream = film(path, container, warnings)
    warnings += fallbacks(path, stream)
    display = display_of(container, stream)
    stream.codec_context.thread_type = "AUTO"
    stream.codec_context.thread_count = threads
    aspect = float(stream.sample_aspect_ratio or 1) or 1.0
    rate = stream.average_rate or stream.guessed_rate
    clock = Clock(float(1 / rate) if rate else 0.04, Fraction(stream.time_base or Fraction(1, 1000)))
    waiting: tuple[VideoFrame | None] | None = None
    selection = None if wants is None else _selection(container, stream, clock, wants)
    stamped = (
        _stamped(path, container, file, stream, clock, warnings)
        if selection is None
        else _selected(path, container, file, stream, clock, selection)
    )
    for now, following in itertools.pairwise(itertools.chain(stamped, [None])):
        assert now is not None, "only the last one is none"
        frame, stamp = now
        if not clock.accept(stamp, following[1] if following else None, following is None):
            continue
        if waiting is not None:
            yield Shown(*waiting, clock.last_s, False, aspect, display.crop)
        elif frame is not None:
            warnings += _not_followed(path, frame, display)
        waiting = (frame,)
    file.require_sound()
    if waiting is None or waiting[0] is None:
        raise InputError(f"{path}: no frame of its video can be decoded; convert it again, e.g. to H.264 mp4")
    if clock.frames == 1:
        raise InputError(f"{path}: holds one frame only, a picture and no video; give a file with two frames or more")
    end_s, announced_s = clock.end_s(getattr(waiting[0], "duration", 0) or 0), _promised_s(container, stream)
    warnings.extend(f"{path}: {count} {what}" for what, count in clock.mended.items())
    if announced_s - end_s > _PROMISE_S:
        warnings.append(f"{path}: its header promises {announced_s:.1f} s, {end_s:.1f} s could be decoded and are used")
    yield Shown(*waiting, end_s, True, aspect, display.crop)


def _not_followed(path: Path, frame: VideoFrame, display: Display) -> list[str]:
    """A line for each way of showing the video that it asks for and does not get."""
    remarks = list(display.remarks)
    if not turn_of(frame).is_exact:
        remarks.append("a display matrix other than quarter turns and mirrors; the nearest of them was taken")
    return [f"{path}: asks to be shown in a way that is not followed ({remark})" for remark in remarks]


def _stamped(
    path: Path, container: InputContainer, file: LocalFile, stream: VideoStream, clock: Clock, warnings: list[str]
) -> Iterator[tuple[VideoFrame, int | None]]:
    """Decoded frames in presentation order, each with its stamp.

    Damaged packets are skipped and counted; an unreadable rest ends it. Raises InputError when the file's device fails.
    """
    order = DisplayOrder(bool(getattr(stream.codec_context, "has_b_frames", True)))
    damaged = 0
    for packet in itertools.chain(_packets(path, container, stream, clock, warnings), [None]):
        file.require_sound()
        if packet is not None:
            order.feed(packet)
        try:
            frames = stream.codec_context.decode(None) if packet is None else packet.decode()
        except EOFError:  # the drained decoder is asked again
            frames = []
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001  whatever the decoder says of it, the packet is damaged
            damaged, frames = damaged + 1, []
        for frame in frames:
            yield from order.take(frame)  # pyright: ignore[reportArgumentType]  a video stream's frames
    yield from order.rest()
    if damaged:
        warnings.append(f"{path}: {damaged} damaged packets were skipped")


def _selection(container: InputContainer, stream: VideoStream, clock: Clock, wants: Wants) -> Selection | None:
    """What chooses among the packets; None where all are to be decoded."""
    codec = stream.codec_context
    reader = reader_of(codec) if any(name in container.format.name.split(",") for name in _SELECTED) else None
    if reader is None:
        return None
    return Selection(reader, wants, clock.tick_s, bool(codec.has_b_frames), is_real=codec.name in IN_ORDER)


def _selected(
    path: Path, container: InputContainer, file: LocalFile, stream: VideoStream, clock: Clock, selection: Selection
) -> Iterator[tuple[VideoFrame | None, int]]:
    """As `_stamped`; frames that nothing looks at may be None. Raises EveryFrameNeeded where a file is not plain."""
    merged, odd = Merged(), []
    for chosen in itertools.chain(selection.of(_packets(path, container, stream, clock, odd)), [None]):
        file.require_sound()
        if odd:
            raise EveryFrameNeeded
        if chosen is not None:
            merged.feed(chosen)
            if not chosen.is_decoded:
                continue
        try:
            frames = stream.codec_context.decode(None) if chosen is None else chosen.packet.decode()
        except EOFError:
            frames = []
        except MemoryError:
            raise
        except Exception as error:  # whatever the decoder says of it
            raise EveryFrameNeeded from error
        for frame in frames:
            yield from merged.take(frame)  # pyright: ignore[reportArgumentType]  a video stream's frames
    yield from merged.rest()


def _packets(
    path: Path, container: InputContainer, stream: VideoStream, clock: Clock, warnings: list[str]
) -> Iterator[Packet]:
    """The stream's packets; the last one is empty and drains the decoder."""
    packets = container.demux(stream)
    for _ in range(_MOST_STRAYS):
        try:
            yield from (packet for packet in packets if packet.stream_index == stream.index)
            return
        except IndexError:  # PyAV stumbles over a stream that appears on the way; the rest of the file is still there
            packets = container.demux(stream)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  whatever the demuxer says of it, the rest cannot be read
            warnings.append(f"{path}: unreadable after {clock.last_s:.1f} s ({error})")
            return
    warnings.append(f"{path}: unreadable after {clock.last_s:.1f} s (streams appear without end)")


def promised_s(path: Path) -> float:
    """Seconds of video that a file's header announces, 0 when it does not say. Raises what `opened` and `film` do."""
    with opened(path) as (container, _):
        return _promised_s(container, film(path, container, [])) or (container.duration or 0) / 1e6


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
