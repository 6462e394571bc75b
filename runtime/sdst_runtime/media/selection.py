"""Which packets of a video the decoder needs, when only some of its frames are looked at.

A frame that nothing looks at and no other frame refers to need not be decoded; nor need what comes between the last
frame that is looked at and the next place where decoding can begin anew. Packets are read ahead, so that both are known
before they are handed on. Every stamp is handed on, also those of frames that are left out: times, and with them what
is looked at, stay those of the whole video. Wherever a file is not plain, `EveryFrameNeeded` is raised.

Stamps are raw timestamps in ticks of the stream; times are seconds from the first frame.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from .references import Reader, Role

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame

Wants = Callable[[float, float], bool]  # whether a frame that is on the screen from one time to another is looked at

_MOST_PACKETS, _MOST_BYTES = 256, 1 << 24  # that wait for the next beginning
_REORDERED = 32  # packets, twice as many as a decoder may hold back: the next frame on the screen is among so many
_LONGEST_S = 1.0  # between frames; the clock mends nothing below it (clock.py)
_SLACK_S = 1e-3  # far more than rounding
_NEWS = ("new_extradata", "param_change")  # side data that later packets need too


class EveryFrameNeeded(Exception):
    """Something is odd about the file: only decoding all of it tells what it shows."""


@dataclass(frozen=True)
class Chosen:
    """A packet, and what is to be done with it."""

    packet: Packet
    stamp: int
    is_decoded: bool
    is_looked_at: bool  # implies `is_decoded`


@dataclass
class Selection:
    """Chooses among a stream's packets. `reorders`: whether frames may be shown in another order than decoded."""

    read: Reader
    wants: Wants
    tick_s: Fraction
    reorders: bool
    is_real: bool = False  # a stamp has gone back: they are times and no count of packets (clock.py, DisplayOrder)
    _first: int | None = None
    _newest: int | None = None

    def of(self, packets: Iterable[Packet]) -> Iterator[Chosen]:
        """Every packet in order. Raises EveryFrameNeeded."""
        group: list[_Held] = []
        size = 0
        for packet in packets:
            if packet.size == 0:  # the last one
                continue
            held = self._held(packet)
            if held.role.begins and group:
                yield from self._chosen(group, [], held.stamp)
                group, size = [], 0
            group.append(held)
            size += packet.size
            if len(group) > _MOST_PACKETS or (size > _MOST_BYTES and len(group) > _REORDERED):
                ready, group = group[:-_REORDERED], group[-_REORDERED:]
                size = sum(each.packet.size for each in group)
                yield from self._chosen(ready, group, None)
        yield from self._chosen(group, [], math.inf)

    def _held(self, packet: Packet) -> _Held:
        stamp = packet.pts
        if stamp is None or packet.is_corrupt or packet.is_discard or _has_news(packet):
            raise EveryFrameNeeded
        if self._newest is not None and stamp < self._newest:
            self.is_real = True
        self._newest = stamp
        return _Held(packet, stamp, self.read(memoryview(packet)))  # pyright: ignore[reportArgumentType]

    def _chosen(self, group: Sequence[_Held], later: Sequence[_Held], next_start: float | None) -> Iterator[Chosen]:
        """The packets of `group`, which those of `later` follow; at the stamp `next_start` decoding begins anew.

        It is infinity at the end of the video, and None where it is not known yet.
        """
        looked_at = self._looked_at([held.stamp for held in (*group, *later)], next_start)
        last = len(group) - 1
        if next_start is not None and (self.is_real or not self.reorders):
            last = max((i for i, (_, stamp, role) in enumerate(group) if stamp in looked_at or role.states), default=-1)
        for i, (packet, stamp, role) in enumerate(group):
            is_looked_at = stamp in looked_at
            is_idle = i > last or (self.is_real and role.disposable and not role.states)
            yield Chosen(packet, stamp, is_looked_at or not is_idle, is_looked_at)

    def _looked_at(self, stamps: Sequence[int], next_start: float | None) -> set[int]:
        """The stamps whose frames are looked at; each stays on the screen until the next one.

        Raises EveryFrameNeeded where they stand still or leap.
        """
        rising = sorted(stamps)
        self._first = min(rising, default=0) if self._first is None else self._first
        ends = [*rising[1:], math.inf if next_start is None else next_start]
        found = set()
        for stamp, end in zip(rising, ends, strict=True):
            start_s, end_s = self._seconds(stamp), self._seconds(end)
            if not 0 < end_s - start_s <= _LONGEST_S and end < math.inf:
                raise EveryFrameNeeded
            if stamp == self._first or end == math.inf or self.wants(start_s - _SLACK_S, end_s + _SLACK_S):
                found.add(stamp)
        return found

    def _seconds(self, stamp: float) -> float:
        return (stamp - (self._first or 0)) * self.tick_s.numerator / self.tick_s.denominator  # as the clock does


def _has_news(packet: Packet) -> bool:
    return any(data.data_type in _NEWS for data in packet.iter_sidedata())


class _Held(NamedTuple):
    packet: Packet
    stamp: int
    role: Role


@dataclass
class Merged:
    """Puts the stamps of frames that were left out between decoded frames, which come in the order of display."""

    _left: list[tuple[int, bool]] = field(default_factory=list)  # stamps without a frame yet, and what is looked at

    def feed(self, chosen: Chosen) -> None:
        """A packet was chosen; before it is decoded."""
        heapq.heappush(self._left, (chosen.stamp, chosen.is_looked_at))

    def take(self, frame: VideoFrame) -> Iterator[tuple[VideoFrame | None, int]]:
        """A frame comes from the decoder. Raises EveryFrameNeeded where it is not the one that was expected."""
        stamp = frame.pts
        if stamp is None or frame.is_corrupt or frame.interlaced_frame:
            raise EveryFrameNeeded
        yield from self._until(stamp)
        if not self._left or heapq.heappop(self._left)[0] != stamp:
            raise EveryFrameNeeded
        yield frame, stamp

    def rest(self) -> Iterator[tuple[VideoFrame | None, int]]:
        """What is left after the last frame. Raises EveryFrameNeeded where the decoder left out one."""
        return self._until(math.inf)

    def _until(self, stamp: float) -> Iterator[tuple[None, int]]:
        while self._left and self._left[0][0] < stamp:
            left, is_looked_at = heapq.heappop(self._left)
            if is_looked_at:
                raise EveryFrameNeeded
            yield None, left
