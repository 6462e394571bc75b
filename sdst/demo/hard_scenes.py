"""Scenes of the hard world, and what they do not show.

- Events last from 2 s to half the video, by a log-uniform draw, and come one to four times.
- Most objects stand still in view before they act, and then begin slowly: where an event begins is not where its object
  appears. One that blinks begins at its full pace.
- A sequence of two events, one directly after the other, is asked for; the same two come in the opposite order too.
- At most two objects are in view at a time, never two that differ in fewer than two attributes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .grammar import Event, Subject, differences, is_held_out, one_attribute_away, pick, random_event, subject_name
from .scenes import (
    DIRECTLY_S,
    GAP_S,
    SAME_EVENT_GAP_S,
    Cast,
    Scene,
    Track,
    is_near,
    make_backdrop,
    make_clutter,
    make_track,
)

LEAST_S = 2.0  # of an event; the most is half the video
APART_S = 4.0  # between appearances of a sequence's events that are no sequence: nobody would take them for one
_FILLED = 0.85  # of the video, by all events together, at most; two at a time count twice
_LATEST_END_S = 0.2  # before the end of the scene: a frame plan may be a little shorter
_IDLE_SHARE = 0.8
_IDLE_S = (1.5, 6.0)
_EASE_S = (0.6, 1.6)
_STARTS = 150  # tried for one appearance before all are laid out anew
_SEQUENCE_SHARE = 0.35  # of what is absent; about that of what is asked for
# where in its period an object that stands still is: in view, and not about to begin again before it has its full pace
_IDLE_PHASES = {"grow": (0.0, 0.35), "shrink": (0.0, 0.35), "blink": (0.42, 0.54)}
_MOVING_PHASES = (0.25, 0.55)


def make_hard_scene(rng: np.random.Generator, *, held_out_share: float = 0.0) -> Scene:
    """Compose the scene of one video, 60 to 120 s (mean about 81 s).

    `held_out_share` is the share of the events that are held-out combinations; with 0 none ever is.
    """
    duration_s = float(60.0 + 60.0 * rng.beta(1.2, 2.2))
    cast = Cast(rng, held_out_share)
    first = cast.draw()
    pair = (first, cast.draw(first if rng.random() < 0.5 else None))
    singles = [
        cast.draw(pick(rng, cast.events) if rng.random() < 0.5 else None) for _ in range(1 + (rng.random() < 0.4))
    ]
    targets = (*singles, pick(rng, pair))
    distractor = cast.draw(pick(rng, targets))
    tracks = lay_out(rng, _draw_blocks(rng, pair, singles, distractor), pair, duration_s)
    distractors = (distractor,) if is_near(distractor, targets) else ()
    return Scene(duration_s, make_backdrop(rng), make_clutter(rng), tracks, targets, distractors, (pair,))


def ordered_pairs(scene: Scene) -> list[Subject]:
    """All (one, other) that somebody might call a sequence: the other begins after the one does, and while it lasts or
    less than APART_S after its end.
    """
    found = {
        (one.event, other.event)
        for one in scene.tracks
        for other in scene.tracks
        if one.event != other.event and one.start_s < other.start_s < one.end_s + APART_S
    }
    return sorted(found)


def absent_subject(scene: Scene, rng: np.random.Generator, *, near: bool, held_out_share: float) -> Subject:
    """An event, or a sequence, that the scene does not show: none of its tracks is of the event, or of one of the two.

    `near`: one attribute away from an event that it shows, or of one event of the sequence that it asks for; otherwise
    of events drawn from all that it does not show. `held_out_share` of the new events are held-out combinations.
    """
    shown = sorted({track.event for track in scene.tracks})
    sequence = bool(rng.random() < _SEQUENCE_SHARE)
    if near:
        like = list(pick(rng, scene.sequences)) if sequence else [pick(rng, shown)]
        place = int(rng.integers(len(like)))
        like[place] = _near_absent(like[place], shown, rng, held_out_share)
        return tuple(like)
    drawn: list[Event] = []
    while len(drawn) < 1 + sequence:
        event = random_event(rng, held_out=bool(rng.random() < held_out_share))
        if event not in (*shown, *drawn):
            drawn.append(event)
    return tuple(drawn)


def shown_names(scene: Scene) -> list[str]:
    """The names of all events of a scene, then of all pairs of them that might be called a sequence."""
    return [*sorted({str(track.event) for track in scene.tracks}), *map(subject_name, ordered_pairs(scene))]


def _near_absent(event: Event, shown: Sequence[Event], rng: np.random.Generator, held_out_share: float) -> Event:
    held_out = bool(rng.random() < held_out_share)
    found = one_attribute_away(event, rng, lambda other: other not in shown and is_held_out(other) == held_out)
    found = found or one_attribute_away(event, rng, lambda other: other not in shown)
    assert found is not None  # 17 are one attribute away, a scene shows five
    return found


# ---- time ------------------------------------------------------------------------------------------------------------


def _draw_blocks(
    rng: np.random.Generator, pair: tuple[Event, Event], singles: Sequence[Event], distractor: Event
) -> list[Subject]:
    """What comes in one piece, as often as it comes: both orders of the pair, three times at most together."""
    forward, backward = pick(rng, ((1, 1), (1, 1), (1, 1), (2, 1), (1, 2)))
    blocks: list[Subject] = [pair] * forward + [pair[::-1]] * backward
    for event, most in zip(singles, (4, 2), strict=False):
        blocks += [(event,)] * min(most, int(rng.choice((1, 2, 3, 4), p=(0.45, 0.25, 0.15, 0.15))))
    return [*blocks, (distractor,)]


def lay_out(rng: np.random.Generator, blocks: Sequence[Subject], pair: Subject, duration_s: float) -> tuple[Track, ...]:
    """A place for each block, of one event or of two, one directly after the other; `pair`: of those that are two."""
    tracks, patience = None, 1.0
    while tracks is None:
        tracks = _try_to_lay_out(rng, blocks, pair, duration_s, patience)
        patience *= 0.98
    return tracks


def _try_to_lay_out(
    rng: np.random.Generator, blocks: Sequence[Subject], pair: Subject, duration_s: float, patience: float
) -> tuple[Track, ...] | None:
    """The longest first; None when one finds no place. Events and standing still are shorter with less `patience`."""
    lengths_s = _draw_lengths(rng, blocks, duration_s, patience * _FILLED * duration_s)
    tracks: list[Track] = []
    for length_s, i in sorted(zip(lengths_s, range(len(blocks)), strict=True), reverse=True):
        idle_s = patience * float(rng.uniform(*_IDLE_S)) if rng.random() < _IDLE_SHARE else 0.0
        for _ in range(_STARTS):
            start_s = float(rng.uniform(idle_s, duration_s - _LATEST_END_S - length_s))
            placed = _draw_tracks(rng, blocks[i], start_s, start_s + length_s, idle_s)
            if all(_fits(track, tracks, pair) for track in placed):
                tracks += [_drawn_beside(rng, track, tracks) for track in placed]
                break
        else:
            return None
    return tuple(sorted(tracks, key=lambda track: track.start_s))


def _draw_lengths(rng: np.random.Generator, blocks: Sequence[Subject], duration_s: float, all_s: float) -> list[float]:
    """Seconds of each, log-uniform from the least to half the video; one is of the upper half of that and keeps its
    length. What the others have above the least shrinks evenly until all together take at most `all_s`.
    """
    least_s = np.array([LEAST_S * len(block) + DIRECTLY_S * (len(block) - 1) for block in blocks])
    reach = np.log((duration_s - _LATEST_END_S) / 2 / least_s)
    others = np.arange(len(blocks)) != rng.integers(len(blocks))
    more_s = least_s * np.expm1(reach * rng.uniform(np.where(others, 0.0, 0.5), 1.0))
    room_s = max(all_s - least_s.sum(), 0.0)
    kept_s = min(float(more_s[~others].sum()), room_s)
    more_s[~others] = kept_s
    more_s[others] *= min(1.0, (room_s - kept_s) / more_s[others].sum())
    return (least_s + more_s).tolist()


def _draw_tracks(rng: np.random.Generator, block: Subject, start_s: float, end_s: float, idle_s: float) -> list[Track]:
    """The tracks of an event, or of two of which the second follows directly; the first stands still before."""
    if len(block) == 1:
        return [_after_idle(rng, make_track(block[0], rng, start_s, end_s), idle_s)]
    gap_s = float(rng.uniform(0.0, DIRECTLY_S))
    spare_s = end_s - start_s - gap_s - 2 * LEAST_S
    middle_s = start_s + LEAST_S + spare_s * float(rng.uniform(0.2, 0.8))
    return [
        _after_idle(rng, make_track(block[0], rng, start_s, middle_s), idle_s),
        make_track(block[1], rng, middle_s + gap_s, end_s),
    ]


def _after_idle(rng: np.random.Generator, track: Track, idle_s: float) -> Track:
    """The same with an object that stands still before, and then begins slowly."""
    if idle_s == 0:
        return track
    action = track.event.action
    ease_s = 0.0 if action == "blink" else min(float(rng.uniform(*_EASE_S)), (track.end_s - track.start_s) / 2)
    phase = float(rng.uniform(*_IDLE_PHASES.get(action, _MOVING_PHASES)))
    return replace(track, idle_s=idle_s, ease_s=ease_s, phase=phase)


def _drawn_beside(rng: np.random.Generator, track: Track, tracks: Sequence[Track]) -> Track:
    """The same, in the other half of the frame where another object is in view."""
    host = next((other for other in tracks if _during(track, other, 0.0)), None)
    if host is None:
        return track
    beside = make_track(track.event, rng, track.start_s, track.end_s, host)
    return replace(track, lane=beside.lane, height=beside.height)


def _fits(track: Track, tracks: Sequence[Track], pair: Subject) -> bool:
    """Whether it may be in view where it is, beside those that have their place."""
    for other in tracks:
        related = track.event in pair and other.event in pair
        gap_s = APART_S if related else SAME_EVENT_GAP_S if track.event == other.event else None
        if gap_s is not None and _during(track, other, gap_s):
            return False
    company = [other for other in tracks if _during(track, other, GAP_S)]
    return all(differences(track.event, other.event) >= 2 for other in company) and not any(
        _during(one, other, GAP_S) for one in company for other in company if one is not other
    )


def _during(one: Track, other: Track, gap_s: float) -> bool:
    """Whether both are in view at one time, or one less than `gap_s` after the other."""
    return one.appears_s < other.end_s + gap_s and one.end_s + gap_s > other.appears_s
