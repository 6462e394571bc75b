"""The demo's data set: rendered videos and annotations in the QVHighlights form.

    out/world.json                 what the videos were made with; another world, seed or size needs another folder
    out/videos/{vid}.mp4           vid = train_00000, val_00000, ...
    out/annotations/{split}.jsonl  one query a line

Video i of a split depends on (seed, split, i) alone: counts may grow and nothing that exists changes.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from sdst_runtime.children import end_with_parent
from sdst_runtime.errors import ContractError, InputError
from sdst_runtime.files import write_json, write_jsonl
from sdst_runtime.machine import interrupts_ignored
from sdst_runtime.strict_json import read_json

from .grammar import Subject, is_held_out, sentences, subject_name
from .hard_scenes import absent_subject, make_hard_scene, shown_names
from .render import FramePlan, check_size, make_plan, render_video
from .scenes import Scene, Track, make_scene, pose

World = Literal["plain", "hard"]
PLAIN, HARD = get_args(World)
Made = tuple[int, int, World]  # seed, size and world of all videos of a folder
WORLD_VERSION = 1  # raise it when the same seed would give other videos
SPLITS = ("train", "val")
CLIP_S = 2.0
HELD_OUT_SHARE = {"train": 0.0, "val": 0.45}
_QUERIES: dict[tuple[World, str], tuple[int, int]] = {  # fewest and most for a video, besides those that are absent
    ("plain", "train"): (5, 6),
    ("plain", "val"): (4, 5),
    ("hard", "train"): (5, 6),
    ("hard", "val"): (4, 4),
}
_ABSENT: dict[tuple[World, str], int] = {("hard", "val"): 2}  # for a video: a third of all, every second a near miss
_SCENE, _PLAN, _WORDS, _SCORES, _MISSING = range(5)  # independent random streams of one video
_QIDS_PER_VIDEO = 10


@dataclass(frozen=True)
class Dataset:
    """Where a rendered data set lies, and what it took."""

    videos: Path
    annotations: dict[str, Path]  # split -> JSONL file
    rendered: int  # videos rendered now
    kept: int  # videos that were there already


def render_dataset(
    out: Path,
    *,
    seed: int,
    train_videos: int,
    val_videos: int,
    size: int = 64,
    world: World = "plain",
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Render the videos that `out` lacks, and write both annotation files.

    `workers`: processes, by default one a core; 1 renders in this process. `progress(done, total)` counts videos and is
    called in this process. Raises InputError for bad numbers or an unwritable `out`, ContractError when `out` holds
    videos of another world or made with another seed, size or version.
    """
    counts = {"train": train_videos, "val": val_videos}
    for name, value, least in (("seed", seed, 0), ("train videos", train_videos, 0), ("val videos", val_videos, 0)):
        if value < least:
            raise InputError(f"demo data: expected {name} to be {least} or more, got {value}")
    check_size(size)
    out = Path(out)
    _claim(out, {"world": world, "version": WORLD_VERSION, "seed": seed, "size": size})
    jobs = [(split, i) for split in SPLITS for i in range(counts[split])]
    missing = [(split, i) for split, i in jobs if not (out / "videos" / f"{video_id(split, i)}.mp4").is_file()]
    kept = len(jobs) - len(missing)
    if progress is not None:
        progress(kept, len(jobs))
    for done, _ in enumerate(_render_all(out, (seed, size, world), missing, workers or os.cpu_count() or 1), kept + 1):
        if progress is not None:
            progress(done, len(jobs))
    paths = {split: out / "annotations" / f"{split}.jsonl" for split in SPLITS}
    for split, path in paths.items():
        write_jsonl(path, [row for i in range(counts[split]) for row in annotate(seed, split, i, world)])
    return Dataset(out / "videos", paths, rendered=len(missing), kept=kept)


def video_id(split: str, index: int) -> str:
    """The name of a video, without its suffix."""
    return f"{split}_{index:05d}"


def story(seed: int, split: str, index: int, world: World = "plain") -> tuple[Scene, FramePlan]:
    """What video `index` of `split` shows, and when its frames are shown."""
    make = make_hard_scene if world == HARD else make_scene
    scene = make(_stream(seed, split, index, _SCENE), held_out_share=HELD_OUT_SHARE[split])
    return scene, make_plan(_stream(seed, split, index, _PLAN), scene.duration_s)


def annotate(seed: int, split: str, index: int, world: World = "plain") -> list[dict[str, Any]]:
    """The annotation rows of one video: QVHighlights' fields, `held_out_combination`, and what keeps a sentence from
    being drawn as absent (data/absent.py): its `event`, and `video_events`, all that the video shows.

    Subjects take turns, each time in other words. Windows are seconds, rounded to 0.01 and clamped to the encoded
    duration. Clips of 2 s are relevant when a window fills at least half of them; each has three scores, 0 to 4. In the
    hard world validation has besides rows that are `absent`, and say whether they are a `near_miss`.
    """
    scene, plan = story(seed, split, index, world)
    words, scores = _stream(seed, split, index, _WORDS), _stream(seed, split, index, _SCORES)
    fewest, most = _QUERIES[world, split]
    count, subjects = int(words.integers(fewest, most + 1)), scene.subjects
    wordings = {subject: sentences(subject, words, -(-count // len(subjects))) for subject in subjects}
    duration_s = round(plan.duration_s, 3)
    shown = shown_names(scene) if world == HARD else sorted({str(track.event) for track in scene.tracks})

    def row(number: int, subject: Subject, query: str, windows: list[list[float]], **more: bool) -> dict[str, Any]:
        clips = _relevant_clips(windows)
        return {
            "qid": (len(SPLITS) * index + SPLITS.index(split)) * _QIDS_PER_VIDEO + number,
            "query": query,
            "duration": duration_s,
            "vid": video_id(split, index),
            "relevant_windows": windows,
            "relevant_clip_ids": clips,
            "saliency_scores": [_scores(scene, subject, clip, scores) for clip in clips],
            "held_out_combination": any(map(is_held_out, subject)),
            "event": subject_name(subject),
            "video_events": shown,
            **more,
        }

    rows = []
    for number in range(count):
        turn, which = divmod(number, len(subjects))
        subject = subjects[which]
        windows = [[round(a, 2), round(min(b, duration_s), 2)] for a, b in scene.windows(*subject)]
        rows.append(row(number, subject, wordings[subject][turn], windows))
    missing = _stream(seed, split, index, _MISSING)
    for number in range(_ABSENT.get((world, split), 0)):
        near = number % 2 == 0
        subject = absent_subject(scene, missing, near=near, held_out_share=HELD_OUT_SHARE[split])
        (query,) = sentences(subject, missing, 1)
        rows.append(row(count + number, subject, query, [], absent=True, near_miss=near))
    return rows


def _stream(seed: int, split: str, index: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng([seed, SPLITS.index(split), index, purpose])


def _relevant_clips(windows: list[list[float]]) -> list[int]:
    clips = set()
    for start_s, end_s in windows:
        for clip in range(int(start_s // CLIP_S), int(end_s // CLIP_S) + 1):
            if min(end_s, (clip + 1) * CLIP_S) - max(start_s, clip * CLIP_S) >= CLIP_S / 2:
                clips.add(clip)
    return sorted(clips)


def _scores(scene: Scene, subject: Subject, clip: int, rng: np.random.Generator) -> list[int]:
    """Three annotators' scores of a relevant clip: its worth, each seen a little differently."""
    worth = _worth(scene, subject, clip)
    return [int(score) for score in np.clip(np.rint(4.0 * worth + rng.normal(0.0, 0.45, 3)), 0, 4)]


def _worth(scene: Scene, subject: Subject, clip: int) -> float:
    """0 to 1: near 1 in the middle of the window with the object large and fully in view, low at its borders."""
    times_s = clip * CLIP_S + CLIP_S * (np.arange(4) + 0.5) / 4
    total = 0.0
    for tracks in scene.appearances(*subject):
        start_s, end_s = tracks[0].start_s, tracks[-1].end_s
        middle_s, half_s = (start_s + end_s) / 2, (end_s - start_s) / 2
        for time_s in times_s:
            for track in tracks:
                if track.start_s <= time_s < track.end_s:
                    central = 1.0 - (abs(time_s - middle_s) / half_s) ** 2
                    total += 0.25 + 0.5 * central + 0.25 * _visible(track, float(time_s))
    return total / len(times_s)


def _visible(track: Track, time_s: float) -> float:
    """0 to 1: how much of a large object is in view."""
    where = pose(track, time_s)
    large = min(1.0, where.radius / 0.15)
    blinking = 0.5 if track.event.action == "blink" else 0.0  # off is a part of blinking, not an absence
    return max(blinking, where.in_view * large)


# ---- rendering in processes ------------------------------------------------------------------------------------------


def require_world(out: Path, world: World) -> None:
    """Raise ContractError unless the videos in `out` are of this world."""
    _require_same(out, {"world": world})


def _claim(out: Path, world: dict[str, int | str]) -> None:
    """Write out/world.json, or hold what it says against `world`."""
    path = out / "world.json"
    if path.is_file():
        _require_same(out, world)
    else:
        write_json(path, world)


def _require_same(out: Path, world: Mapping[str, int | str]) -> None:
    stated = read_json(out / "world.json", f"delete {out} or choose another folder")
    stated = {"world": PLAIN} | stated if isinstance(stated, dict) else {}  # there was one only
    for field, value in world.items():
        got = stated.get(field)
        if got != value:
            raise ContractError(
                f"{out} holds demo videos made with {field} {got}, now {field} {value} is asked for: "
                "delete the folder or choose another"
            )


def _render_all(out: Path, made: Made, jobs: list[tuple[str, int]], workers: int) -> Iterator[None]:
    """Render jobs in any order; yields once for each."""
    if workers == 1 or len(jobs) < 2:
        for split, index in jobs:
            yield _render_one(out, made, split, index)
        return
    # spawn: a fork of a process that runs threads (torch, onnxruntime) may hang
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)), multiprocessing.get_context("spawn"), end_with_parent, (os.getpid(),)
    )  # fmt: skip
    try:
        with interrupts_ignored():
            futures = [pool.submit(_render_one, out, made, *job) for job in jobs]
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool as error:
        raise InputError("a rendering process died (out of memory?): run again, with one worker") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _render_one(out: Path, made: Made, split: str, index: int) -> None:
    seed, size, world = made
    scene, plan = story(seed, split, index, world)
    render_video(scene, plan, out / "videos" / f"{video_id(split, index)}.mp4", size=size)
