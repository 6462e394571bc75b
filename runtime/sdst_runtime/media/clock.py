"""Times of frames: the timestamps that a file states, put in display order, and what is wrong with them mended.

Stamps are raw timestamps in ticks of the stream; times are seconds from the first frame.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame

LONGEST_S = 600.0  # a longer step forward is a broken clock, not a still picture
_REWIND_S = 1.0  # a longer step back is a restarted clock (joined recordings); a shorter one is a damaged timestamp
_HOLE_S, _HOLE_INTERVALS = 1.0, 20  # a longer wait for the next frame, at a rate this much higher, is a hole
_STILL_S = 60.0  # the longest wait for a last frame, and the longest last frame, that is believed after such a rate
_STEP_S = 1.0  # the interval where the file's own is none
_DEEPEST = 16  # frames that a decoder may hold back to put them in order (H.264 and H.265)


@dataclass
class DisplayOrder:
    """Gives each frame, as decoders put them out in display order, its stamp.

    Some containers (AVI, and mp4 or Matroska from careless writers) have one stamp a packet, counted in the order of
    decoding. A frame that is shown in another order then carries the stamp of its packet, which is not its time: the
    stamps in rising order are the times. Packets whose stamps do go back show that the stamps are real ones. As long
    as they do not, a frame that comes before another of a smaller stamp waits until that stamp is there, or lost.
    """

    reorders: bool  # whether the decoder holds frames back at all
    real: bool = False
    _fed: list[int] = field(default_factory=list)  # stamps of packets that no frame has taken yet, a heap
    _came: set[int] = field(default_factory=set)  # stamps that frames carried and none has taken yet
    _held: deque[VideoFrame] = field(default_factory=deque)
    _newest: int | None = None

    def feed(self, packet: Packet) -> None:
        """A packet goes to the decoder."""
        stamp = packet.pts if packet.pts is not None else packet.dts
        if self.real or stamp is None or packet.size == 0 or packet.is_discard:
            return
        if self._newest is not None and stamp < self._newest:
            self.real = True
            return
        self._newest = stamp
        heapq.heappush(self._fed, stamp)

    def take(self, frame: VideoFrame) -> Iterator[tuple[VideoFrame, int | None]]:
        """A frame comes from the decoder; frames whose stamps are known go on."""
        if frame.pts is not None:
            self._came.add(frame.pts)
        self._held.append(frame)
        return self._known(_DEEPEST if self.reorders else 0)

    def rest(self) -> Iterator[tuple[VideoFrame, int | None]]:
        """The frames that still wait, after the last one."""
        return self._known(0)

    def _known(self, patience: int) -> Iterator[tuple[VideoFrame, int | None]]:
        while self._held:
            own = self._held[0].pts
            if self.real or not self._fed:
                stamp = own
            elif own is None or self._fed[0] in self._came:
                stamp = heapq.heappop(self._fed)
            elif len(self._held) > patience:
                heapq.heappop(self._fed)  # of a packet that gave no frame
                continue
            else:
                return
            if stamp is not None:
                self._came.discard(stamp)
            yield self._held.popleft(), stamp


@dataclass
class Clock:
    """Turns stamps into seconds from the first frame that never go back, and counts what it had to mend."""

    usual_s: float  # the interval to assume when there is none to measure
    tick_s: Fraction
    first: int | None = None  # stamp of time 0
    last_s: float = 0.0
    frames: int = 0
    mended: dict[str, int] = field(default_factory=dict)

    def interval_s(self) -> float:
        """Mean time between frames so far."""
        mean_s = self.last_s / (self.frames - 1) if self.frames > 1 and self.last_s > 0 else self.usual_s
        return mean_s if 0 < mean_s <= LONGEST_S else _STEP_S

    def accept(self, stamp: int | None, following: int | None, is_last: bool) -> bool:
        """Advance to a frame; False when it is to be dropped. Afterwards `last_s` is its time.

        `following` is the next frame's stamp, if it has one.
        """
        if self.frames == 0:
            self.first, time_s = stamp, 0.0
        elif stamp is None:
            self._count("frames had no timestamp: placed one mean interval after the one before")
            time_s = self.last_s + self.interval_s()
        else:
            if self.first is None:  # the frames so far had none: the clock starts here
                self.first = stamp - round((self.last_s + self.interval_s()) / self.tick_s)
            time_s = self._mended(stamp, following, is_last)
            if time_s < self.last_s:
                self._count("frames came later than their timestamp: dropped")
                return False
        self.last_s, self.frames = time_s, self.frames + 1
        return True

    def end_s(self, length: int) -> float:
        """When the last frame leaves the screen, which states `length` ticks."""
        length_s = float(length * self.tick_s)
        if 0 < length_s <= max(_STILL_S, self._hole_s()):
            return self.last_s + length_s
        if length_s > 0:
            self._count("last frame states an endless time: one mean interval was taken")
        return self.last_s + self.interval_s()

    def _seconds(self, stamp: int) -> float:
        tick_s = self.tick_s  # as two whole numbers: the same float as a Fraction's product, in a tenth of the time
        return (stamp - (self.first or 0)) * tick_s.numerator / tick_s.denominator

    def _hole_s(self) -> float:
        """A wait far beyond the file's own rate."""
        return max(_HOLE_S, _HOLE_INTERVALS * self.interval_s())

    def _mended(self, stamp: int, following: int | None, is_last: bool) -> float:
        """The time of a stamp; less than `last_s` only for a frame that is to be dropped."""
        time_s, next_s = self._seconds(stamp), self.last_s + self.interval_s()
        gap_s, hole_s = time_s - self.last_s, self._hole_s()
        is_odd = gap_s < -_REWIND_S or gap_s > hole_s
        after_s = math.inf if following is None else self._seconds(following)
        if is_odd and self.last_s <= after_s <= self.last_s + hole_s:
            self._count("frames had a timestamp far from their neighbours': placed between them")
            return min(next_s, after_s)
        if gap_s < -_REWIND_S or gap_s > LONGEST_S:
            self._count(
                f"times the timestamps jumped (back, or by more than {LONGEST_S:.0f} s): the video was taken to run on "
                "without a gap"
            )
            self.first = stamp - round(next_s / self.tick_s)
            return next_s
        if is_last and gap_s > max(_STILL_S, hole_s):
            self._count("last frame came far too late: placed one mean interval after the one before")
            return next_s
        if gap_s > min(hole_s, _STILL_S):
            self._count("times no frame came for long: the picture before was kept")
        return time_s

    def _count(self, what: str) -> None:
        self.mended[what] = self.mended.get(what, 0) + 1
