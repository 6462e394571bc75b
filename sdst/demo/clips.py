"""Single clips with their sentences, painted in memory: the food of the tiny backbone's contrastive training.

No clip shows or names a held-out combination. Clips come in groups of two that differ in one attribute only, so that a
batch always holds the negatives that are hardest to tell apart.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sdst_runtime.errors import InputError

from .dataset import CLIP_S
from .grammar import Event, differences, empty_sentence, is_held_out, one_attribute_away, random_event, sentence
from .render import as_decoded, check_size
from .scenes import Painter, Scene, Track, make_backdrop, make_clutter, make_track

FRAMES_PER_CLIP = 4
_LATE_S = 0.08  # a decoder shows the last frame before the time asked for, at these rates up to this much older


@dataclass(frozen=True)
class ClipBatch:
    """N clips and their sentences. Rows 2g and 2g + 1 have group g and differ in one attribute."""

    frames: np.ndarray  # N 4 S S 3, uint8 RGB, at the middles of four equal intervals of 2 s
    sentences: tuple[str, ...]  # N
    events: tuple[Event | None, ...]  # N, what the sentence describes; None: nothing happens
    others: tuple[Event | None, ...]  # N, the second object in view, which the sentence does not speak of
    groups: np.ndarray  # N, int64; -1 for clips that have no partner

    def fits(self) -> np.ndarray:
        """N N, bool: whether sentence j (column) is true of clip i (row). The diagonal is true.

        Use it as the targets of a contrastive loss: more than one sentence can be true of a clip.
        """
        fits = np.zeros((len(self.events), len(self.events)), bool)
        for i, (event, other) in enumerate(zip(self.events, self.others, strict=True)):
            for j, said in enumerate(self.events):
                fits[i, j] = said == event or (said is not None and said == other)
        return fits


def sample_clips(
    rng: np.random.Generator,
    count: int,
    *,
    image_size: int = 56,
    video_size: int = 64,
    yuv: bool = True,
    empty_share: float = 0.06,
    company_share: float = 0.25,
    border_share: float = 0.1,
) -> ClipBatch:
    """Draw `count` clips, the same for the same generator state.

    Painted at `video_size` and resized as a decoder would to `image_size` (bicubic, swscale); with `yuv` the colours
    pass through yuv420p as in a video file. Shares of the clips: `empty_share` show the background alone and say so;
    `company_share` show a second object, which differs from both events of its group in two attributes or more;
    `border_share` begin or end within the clip, with at least two of the four frames showing the object.
    Raises InputError when a number is out of range.
    """
    check_size(video_size)
    if count < 1 or image_size < 8:
        raise InputError(f"sample clips: expected a count of 1 or more and 8 pixels or more, got {count}, {image_size}")
    empty = round(empty_share * count)
    frames = np.empty((count, FRAMES_PER_CLIP, image_size, image_size, 3), np.uint8)
    said: list[str] = []
    events: list[Event | None] = []
    others: list[Event | None] = []

    def add(scene: Scene, event: Event | None, other: Event | None) -> None:
        painter = Painter(scene, video_size)
        times_s = (np.arange(FRAMES_PER_CLIP) + 0.5) * CLIP_S / FRAMES_PER_CLIP - rng.uniform(0.0, _LATE_S)
        for f, time_s in enumerate(times_s - rng.uniform(0.0, 0.03, FRAMES_PER_CLIP)):
            frames[len(said), f] = as_decoded(painter.frame(float(time_s)), image_size, yuv=yuv)
        said.append(empty_sentence(rng) if event is None else sentence(event, rng))
        events.append(event)
        others.append(other)

    while len(said) < count - empty:
        first = random_event(rng, held_out=False)
        second = one_attribute_away(first, rng, lambda event: not is_held_out(event))
        pair = (first, second or first)
        alike = rng.random() < 0.5  # same place, beat and backdrop: nothing but the attribute tells them apart
        company = rng.random() < company_share
        other = _companion(pair, rng) if company else None
        model: Scene | None = None
        for event in pair[: count - empty - len(said)]:
            if model is not None and alike:
                tracks = tuple(replace(t, event=event) if t.event == first else t for t in model.tracks)
                if event.action != first.action:
                    period_s = make_track(event, rng, 0.0, 1.0).period_s
                    tracks = tuple(replace(t, period_s=period_s) if t.event == event else t for t in tracks)
                scene = replace(model, tracks=tracks)
            else:
                scene = _clip_scene(event, other, rng, border=event.action != "blink" and rng.random() < border_share)
                model = scene
            add(scene, event, other)
    paired = len(said) // 2 * 2
    while len(said) < count:
        add(Scene(CLIP_S, make_backdrop(rng), make_clutter(rng), ()), None, None)
    groups = np.full(count, -1, np.int64)
    groups[:paired] = np.arange(paired) // 2
    return ClipBatch(frames, tuple(said), tuple(events), tuple(others), groups)


def _companion(pair: tuple[Event, Event], rng: np.random.Generator) -> Event:
    while True:
        event = random_event(rng, held_out=False)
        if all(differences(event, member) >= 2 for member in pair):
            return event


def _clip_scene(event: Event, other: Event | None, rng: np.random.Generator, *, border: bool) -> Scene:
    start_s, end_s = -1.0, CLIP_S + 1.0
    if border and rng.random() < 0.5:
        start_s = float(rng.uniform(0.0, 1.1))
    elif border:
        end_s = float(rng.uniform(0.9, CLIP_S))
    track = make_track(event, rng, start_s, end_s)
    tracks: tuple[Track, ...] = (track,)
    if other is not None:
        tracks = (make_track(other, rng, -1.0, CLIP_S + 1.0, track), track)
        tracks = tracks if rng.random() < 0.5 else tracks[::-1]
    return Scene(CLIP_S, make_backdrop(rng), make_clutter(rng), tracks)
