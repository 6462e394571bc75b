"""Scenes of the demo's world: who appears when, and the picture at any time.

A scene is a backdrop, perhaps some grey clutter, and tracks: an event shown from start_s to end_s. Lengths are
fractions of the frame's side, times are seconds. Motion is made to be read from four frames half a second apart: an
object crosses the frame in about three seconds and re-enters at the other side; one that grows starts again small
after about four; one that blinks is both on and off among any four such frames. Objects leave a fading afterimage of
the last half second, as on a slow screen: a moving one has a tail, a shrinking one a halo.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .grammar import Event, Subject, differences, is_held_out, one_attribute_away, pick, random_event

RGB: dict[str, tuple[int, int, int]] = {
    "red": (222, 36, 36),
    "green": (40, 178, 62),
    "blue": (48, 84, 240),
    "yellow": (246, 228, 48),
    "purple": (164, 52, 208),
    "orange": (250, 138, 22),
    "cyan": (60, 214, 226),
    "white": (246, 246, 246),
}
MIN_LENGTH_S, MAX_LENGTH_S = 4.0, 24.0
SAME_EVENT_GAP_S = 2.5  # two windows of one event stay apart, so that nobody would call them one
GAP_S = 0.4
DIRECTLY_S = 0.3  # at most so long after an event ends the next one of a sequence begins
_LEAST_RADIUS, _MOST_RADIUS = 0.1, 0.3  # of growing and shrinking objects
_AFTERIMAGES = ((0.5, 0.25), (0.25, 0.45))  # (seconds ago, opacity), oldest first
_RE_ENTRY = 0.6  # an object re-enters when 0.6 of its radius is beyond the edge
_BLINK_ON = 0.55


@dataclass(frozen=True)
class Track:
    """One appearance of an event."""

    event: Event
    start_s: float
    end_s: float
    radius: float  # of the moving and blinking objects
    period_s: float  # from one restart (re-entry, small again, on again) to the next
    phase: float  # 0..1, where in its period the object begins
    lane: float  # position across the direction of motion; x of objects that stay in place
    height: float  # y of objects that stay in place
    tint: float  # brightness of the colour, about 1
    idle_s: float = 0.0  # how long the object stands still in view before the event begins
    ease_s: float = 0.0  # how long it takes to its full pace, which rises evenly from the beginning of the event

    @property
    def appears_s(self) -> float:
        """When the object comes into view."""
        return self.start_s - self.idle_s


@dataclass(frozen=True)
class Clutter:
    """A grey bar that no sentence speaks of; it stands still or drifts slowly and wraps around."""

    x: float
    y: float
    width: float
    height: float
    grey: float  # 0..255
    speed: tuple[float, float]  # frame sides a second


@dataclass(frozen=True)
class Backdrop:
    """A dim gradient with a faint texture, the same in every frame of a video."""

    base: tuple[float, float, float]  # RGB, 0..255
    slope: tuple[float, float]  # brightness from left to right and from top to bottom
    texture: float  # standard deviation, grey levels
    texture_seed: int


@dataclass(frozen=True)
class Scene:
    """Everything one video shows. `targets` and `sequences`, of two events one directly after the other, are asked for;
    `distractors` differ from a target in one attribute.
    """

    duration_s: float
    backdrop: Backdrop
    clutter: tuple[Clutter, ...]
    tracks: tuple[Track, ...]
    targets: tuple[Event, ...] = ()
    distractors: tuple[Event, ...] = ()
    sequences: tuple[tuple[Event, Event], ...] = ()

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """What is asked for."""
        return (*self.sequences, *((event,) for event in self.targets))

    def appearances(self, *subject: Event) -> list[tuple[Track, ...]]:
        """The tracks of every appearance of an event, or of events that come directly after each other."""
        found = [(track,) for track in self.tracks if track.event == subject[0]]
        for event in subject[1:]:
            found = [
                (*before, track)
                for before in found
                for track in self.tracks
                if track.event == event and 0 <= track.start_s - before[-1].end_s <= DIRECTLY_S
            ]
        return found

    def windows(self, *subject: Event) -> list[tuple[float, float]]:
        """(start_s, end_s) of every appearance, in order."""
        return sorted((tracks[0].start_s, tracks[-1].end_s) for tracks in self.appearances(*subject))


@dataclass(frozen=True)
class Pose:
    """Where an object is at one time, as fractions of the frame's side."""

    x: float
    y: float
    radius: float
    shown: bool

    @property
    def in_view(self) -> float:
        """Share of the object's bounding box inside the frame, 0 to 1; 0 while a blinking object is off."""
        inside = [min(1.0, c + self.radius) - max(0.0, c - self.radius) for c in (self.x, self.y)]
        return float(self.shown) * max(0.0, inside[0]) * max(0.0, inside[1]) / (4 * self.radius**2)


def pose(track: Track, time_s: float) -> Pose:
    """The object of `track` at `time_s`, at which it should be in view."""
    beat = _turns(track, time_s) % 1.0
    action, radius = track.event.action, track.radius
    if action in ("grow", "shrink"):
        size = beat if action == "grow" else 1.0 - beat
        return Pose(track.lane, track.height, _LEAST_RADIUS * (_MOST_RADIUS / _LEAST_RADIUS) ** size, True)
    if action == "blink":
        return Pose(track.lane, track.height, radius, beat < _BLINK_ON)
    beyond = _RE_ENTRY * radius
    along = -beyond + (1.0 + 2 * beyond) * (beat if action in ("right", "down") else 1.0 - beat)
    return (
        Pose(along, track.lane, radius, True) if action in ("left", "right") else Pose(track.lane, along, radius, True)
    )


def _turns(track: Track, time_s: float) -> float:
    """How many periods the object has behind it; it begins with `phase` of the first."""
    since_s = max(time_s - track.start_s, 0.0)
    if since_s < track.ease_s:
        return track.phase + since_s**2 / (2 * track.ease_s) / track.period_s
    return track.phase + (since_s - track.ease_s / 2) / track.period_s


# ---- composing -------------------------------------------------------------------------------------------------------


def make_scene(rng: np.random.Generator, *, held_out_share: float = 0.0) -> Scene:
    """Compose the scene of one video, 40 to 120 s (mean about 58 s).

    `held_out_share` is the share of the events that are held-out combinations; with 0 none ever is.
    """
    duration_s = float(40.0 + 80.0 * rng.beta(1.0, 3.4))
    cast = Cast(rng, held_out_share)
    events = cast.events
    for _ in range(int(rng.choice((2, 3, 4), p=(0.35, 0.45, 0.2)))):
        cast.draw(pick(rng, events) if events and rng.random() < 0.5 else None)
    targets = tuple(events)
    for _ in range(1 if len(targets) > 2 or duration_s < 50.0 else 2):
        cast.draw(pick(rng, targets))
    tracks = _lay_out(rng, events, targets, duration_s)
    for _ in range(20):
        if {track.event for track in tracks} == set(events):
            break
        tracks = _lay_out(rng, events, targets, duration_s)
    shown = {track.event for track in tracks}
    targets = tuple(event for event in targets if event in shown)
    distractors = tuple(
        event for event in events if event in shown and event not in targets and is_near(event, targets)
    )
    return Scene(duration_s, make_backdrop(rng), make_clutter(rng), tracks, targets, distractors)


class Cast:
    """Draws the events of a scene, all different; `held_out_share` of them are held-out combinations."""

    def __init__(self, rng: np.random.Generator, held_out_share: float) -> None:
        self.events: list[Event] = []
        self._rng, self._share, self._dice = rng, held_out_share, float(rng.random())

    def draw(self, near: Event | None = None) -> Event:
        """One more event; with `near` one that differs from it in one attribute, where there is one."""
        due = self._dice + self._share * len(self.events)  # systematic sampling: each video comes near the share
        held_out = int(due + self._share) > int(due)
        found = None
        if near is not None:
            found = one_attribute_away(
                near, self._rng, lambda event: is_held_out(event) == held_out and event not in self.events
            )
        while found is None or found in self.events:
            found = random_event(self._rng, held_out=held_out)
        self.events.append(found)
        return found


def make_track(
    event: Event, rng: np.random.Generator, start_s: float, end_s: float, beside: Track | None = None
) -> Track:
    """Draw how an event looks. With `beside`, it keeps to the other half of the frame."""
    period_s = {"grow": (3.4, 4.6), "shrink": (3.4, 4.6), "blink": (1.15, 1.5)}.get(event.action, (2.6, 3.8))
    lane, height = rng.uniform(0.28, 0.72, 2)
    if beside is not None:
        low, high = rng.uniform(0.22, 0.32), rng.uniform(0.68, 0.78)
        lane = high if beside.lane < 0.5 else low
        height = high if beside.height < 0.5 else low
    return Track(
        event=event,
        start_s=start_s,
        end_s=end_s,
        radius=float(rng.uniform(0.17, 0.22)),
        period_s=float(rng.uniform(*period_s)),
        phase=float(rng.random()),
        lane=float(lane),
        height=float(height),
        tint=float(rng.uniform(0.93, 1.03)),
    )


def make_backdrop(rng: np.random.Generator) -> Backdrop:
    """A backdrop dark and dull enough that every colour stands out."""
    base = rng.uniform(38.0, 72.0) + rng.uniform(-9.0, 9.0, 3)
    slope = rng.uniform(-26.0, 26.0, 2)
    return Backdrop(
        (float(base[0]), float(base[1]), float(base[2])),
        (float(slope[0]), float(slope[1])),
        float(rng.uniform(1.0, 4.5)),
        int(rng.integers(1 << 31)),
    )


def make_clutter(rng: np.random.Generator) -> tuple[Clutter, ...]:
    """One bar in half of the videos, two in a few, none in the rest."""
    bars = []
    for _ in range(int(rng.choice((0, 1, 2), p=(0.4, 0.45, 0.15)))):
        width, height = rng.uniform(0.05, 0.09), rng.uniform(0.35, 0.7)
        if rng.random() < 0.5:
            width, height = height, width
        speed = rng.uniform(-0.04, 0.04, 2) * (rng.random() < 0.5)
        x, y, grey = rng.random(), rng.random(), rng.uniform(88.0, 122.0)
        drift = (float(speed[0]), float(speed[1]))
        bars.append(Clutter(float(x), float(y), float(width), float(height), float(grey), drift))
    return tuple(bars)


def _lay_out(
    rng: np.random.Generator, events: list[Event], targets: tuple[Event, ...], duration_s: float
) -> tuple[Track, ...]:
    """Place appearances at random times by rejection, shorter after each refusal.

    Every event comes once, targets first; then targets come again while at most 80 % of the time is filled. At most two
    objects are in view at a time, and never two that differ in fewer than two attributes.
    """
    tracks: list[Track] = []
    repeats = [event for event in targets for _ in range(2) if rng.random() < 0.4]
    queue = [targets[i] for i in rng.permutation(len(targets))] + events[len(targets) :]
    queue += [repeats[i] for i in rng.permutation(len(repeats))]
    for number, event in enumerate(queue):
        filled = sum(track.end_s - track.start_s for track in tracks)
        if number >= len(events) and filled > 0.8 * duration_s:
            break
        length_s = min(MIN_LENGTH_S + float(rng.gamma(2.0, 3.4)), MAX_LENGTH_S)
        in_company = bool(tracks) and rng.random() < 0.25
        for attempt in range(60):
            start_s = float(rng.uniform(0.0, duration_s - length_s))
            end_s = start_s + length_s
            if _fits(event, start_s, end_s, tracks, in_company or attempt > 45):
                host = next((t for t in tracks if t.start_s < end_s and t.end_s > start_s), None)
                tracks.append(make_track(event, rng, start_s, end_s, host))
                break
            length_s = max(MIN_LENGTH_S, 0.97 * length_s)
    return tuple(sorted(tracks, key=lambda track: track.start_s))


def _fits(event: Event, start_s: float, end_s: float, tracks: list[Track], in_company: bool) -> bool:
    def during(track: Track, gap_s: float) -> bool:
        return track.start_s < end_s + gap_s and track.end_s > start_s - gap_s

    if any(track.event == event and during(track, SAME_EVENT_GAP_S) for track in tracks):
        return False
    company = [track for track in tracks if during(track, GAP_S)]
    if not company:
        return True
    # one companion only, so that no third object can be in view anywhere in the window
    alone = len(company) == 1 and not any(
        other is not company[0] and other.start_s < company[0].end_s and other.end_s > company[0].start_s
        for other in tracks
    )
    return in_company and alone and differences(event, company[0].event) >= 2


def is_near(event: Event, targets: tuple[Event, ...]) -> bool:
    """Whether it differs from one of them in one attribute."""
    return any(differences(event, target) == 1 for target in targets)


# ---- painting --------------------------------------------------------------------------------------------------------


class Painter:
    """Paints a scene at any time. Only the objects' own patches are computed anew for a frame."""

    def __init__(self, scene: Scene, size: int) -> None:
        self.scene, self.size = scene, size
        self._backdrop = _paint_backdrop(scene.backdrop, size)
        still = [bar for bar in scene.clutter if bar.speed == (0.0, 0.0)]
        self._drifting = [bar for bar in scene.clutter if bar.speed != (0.0, 0.0)]
        for bar in still:
            _paint_bar(self._backdrop, bar, 0.0)

    def frame(self, time_s: float) -> np.ndarray:
        """The picture at `time_s`: size size 3, uint8 RGB, a fresh array."""
        picture = self._backdrop.copy()
        for bar in self._drifting:
            _paint_bar(picture, bar, time_s)
        for track in self.scene.tracks:
            if track.appears_s <= time_s < track.end_s:
                where = pose(track, time_s)
                if where.shown:
                    colour = np.minimum(np.multiply(RGB[track.event.colour], track.tint), 255.0).astype(np.float32)
                    for earlier, opacity in _afterimages(track, time_s):
                        _paint_shape(picture, track.event.shape, colour, earlier, opacity)
                    _paint_shape(picture, track.event.shape, colour, where)
        return picture


def _afterimages(track: Track, time_s: float) -> list[tuple[Pose, float]]:
    """Earlier poses of the same passage with their opacity: none from before the event or its last restart."""
    turns = _turns(track, time_s)
    earliest_s = track.start_s if turns < 1 else max(track.start_s, time_s - (turns % 1.0) * track.period_s)
    return [
        (pose(track, time_s - ago_s), opacity)
        for ago_s, opacity in _AFTERIMAGES
        if track.event.action != "blink" and time_s - ago_s >= earliest_s
    ]


def _paint_backdrop(backdrop: Backdrop, size: int) -> np.ndarray:
    rng = np.random.default_rng(backdrop.texture_seed)
    ramp = np.linspace(-0.5, 0.5, size)
    light = backdrop.slope[0] * ramp[None, :] + backdrop.slope[1] * ramp[:, None]
    coarse = rng.normal(0.0, backdrop.texture, (-(-size // 4), -(-size // 4)))
    light = light + np.kron(coarse, np.ones((4, 4)))[:size, :size]
    return np.clip(light[..., None] + np.asarray(backdrop.base), 8, 120).astype(np.uint8)


def _paint_bar(picture: np.ndarray, bar: Clutter, time_s: float) -> None:
    size = picture.shape[0]
    left, top = (
        round(((start + speed * time_s) % 1.0 - extent / 2) * size)
        for start, speed, extent in ((bar.x, bar.speed[0], bar.width), (bar.y, bar.speed[1], bar.height))
    )
    right, bottom = left + max(1, round(bar.width * size)), top + max(1, round(bar.height * size))
    picture[max(0, top) : max(0, bottom), max(0, left) : max(0, right)] = int(bar.grey)


def _paint_shape(picture: np.ndarray, shape: str, colour: np.ndarray, where: Pose, opacity: float = 1.0) -> None:
    size = picture.shape[0]
    x, y, radius = where.x * size, where.y * size, where.radius * size
    left, right = max(0, int(x - radius) - 1), min(size, int(x + radius) + 2)
    top, bottom = max(0, int(y - radius) - 1), min(size, int(y + radius) + 2)
    if left >= right or top >= bottom:
        return
    dx = np.arange(left, right, dtype=np.float32)[None, :] + np.float32(0.5 - x)
    dy = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5 - y)
    cover = opacity * np.minimum(np.maximum(_depth(shape, dx, dy, radius) + 0.5, 0.0), 1.0)[..., None]
    patch = picture[top:bottom, left:right]
    patch[...] = patch + cover * (colour - patch)


def _depth(shape: str, dx: np.ndarray, dy: np.ndarray, radius: float) -> np.ndarray:
    """Signed distance to the outline in pixels, positive inside. dx: 1 W, dy: H 1, from the centre, y downwards."""
    if shape == "circle":
        return radius - np.sqrt(dx * dx + dy * dy)
    if shape == "ring":
        return 0.21 * radius - np.abs(np.sqrt(dx * dx + dy * dy) - 0.79 * radius)
    if shape == "square":
        return 0.86 * radius - np.maximum(np.abs(dx), np.abs(dy))
    if shape == "triangle":  # upright; two sides of slope 2
        return np.minimum(0.85 * radius - dy, (radius + dy - 2.0 * np.abs(dx)) * 0.447)
    ax, ay = np.abs(dx), np.abs(dy)  # cross
    return np.maximum(np.minimum(radius - ax, 0.27 * radius - ay), np.minimum(0.27 * radius - ax, radius - ay))
