"""The demo's data set: rendered videos and annotations in the QVHighlights form.

    out/world.json                 what the videos were made with; another seed or size needs another folder
    out/videos/{vid}.mp4           vid = train_00000, val_00000, ...
    out/annotations/{split}.jsonl  one query a line

Video i of a split depends on (seed, split, i) alone: counts may grow and nothing that exists changes.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdst_runtime.children import end_with_parent
from sdst_runtime.errors import ContractError, InputError
from sdst_runtime.files import write_json, write_jsonl
from sdst_runtime.machine import interrupts_ignored
from sdst_runtime.strict_json import read_json

from .grammar import Event, is_held_out, sentences
from .render import FramePlan, check_size, make_plan, render_video
from .scenes import Scene, make_scene, pose

WORLD_VERSION = 1  # raise it when the same seed would give other videos
SPLITS = ("train", "val")
CLIP_S = 2.0
HELD_OUT_SHARE = {"train": 0.0, "val": 0.45}
_QUERIES = {"train": (5, 6), "val": (4, 5)}  # fewest and most for a video
_SCENE, _PLAN, _WORDS, _SCORES = range(4)  # independent random streams of one video
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
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Render the videos that `out` lacks, and write both annotation files.

    `workers`: processes, by default one a core; 1 renders in this process. `progress(done, total)` counts videos and is
    called in this process. Raises InputError for bad numbers or an unwritable `out`, ContractError when `out` holds
    videos made with another seed, size or version.
    """
    counts = {"train": train_videos, "val": val_videos}
    for name, value, least in (("seed", seed, 0), ("train videos", train_videos, 0), ("val videos", val_videos, 0)):
        if value < least:
            raise InputError(f"demo data: expected {name} to be {least} or more, got {value}")
    check_size(size)
    out = Path(out)
    _claim(out, {"version": WORLD_VERSION, "seed": seed, "size": size})
    jobs = [(split, i) for split in SPLITS for i in range(counts[split])]
    missing = [(split, i) for split, i in jobs if not (out / "videos" / f"{video_id(split, i)}.mp4").is_file()]
    kept = len(jobs) - len(missing)
    if progress is not None:
        progress(kept, len(jobs))
    for done, _ in enumerate(_render_all(out, seed, size, missing, workers or os.cpu_count() or 1), kept + 1):
        if progress is not None:
            progress(done, len(jobs))
    paths = {split: out / "annotations" / f"{split}.jsonl" for split in SPLITS}
    for split, path in paths.items():
        write_jsonl(path, [row for i in range(counts[split]) for row in annotate(seed, split, i)])
    return Dataset(out / "videos", paths, rendered=len(missing), kept=kept)


def video_id(split: str, index: int) -> str:
    """The name of a video, without its suffix."""
    return f"{split}_{index:05d}"


def story(seed: int, split: str, index: int) -> tuple[Scene, FramePlan]:
    """What video `index` of `split` shows, and when its frames are shown."""
    scene = make_scene(_stream(seed, split, index, _SCENE), held_out_share=HELD_OUT_SHARE[split])
    return scene, make_plan(_stream(seed, split, index, _PLAN), scene.duration_s)


def annotate(seed: int, split: str, index: int) -> list[dict[str, Any]]:
    """The annotation rows of one video: QVHighlights' fields, `held_out_combination`, and what keeps a sentence from
    being drawn as absent (data/absent.py): its `event`, and `video_events`, all that the video shows.

    Targets take turns, each time in other words. Windows are seconds, rounded to 0.01 and clamped to the encoded
    duration. Clips of 2 s are relevant when a window fills at least half of them; each has three scores, 0 to 4.
    """
    scene, plan = story(seed, split, index)
    words, scores = _stream(seed, split, index, _WORDS), _stream(seed, split, index, _SCORES)
    fewest, most = _QUERIES[split]
    count = int(words.integers(fewest, most + 1))
    wordings = {event: sentences(event, words, -(-count // len(scene.targets))) for event in scene.targets}
    duration_s = round(plan.duration_s, 3)
    shown = sorted({str(track.event) for track in scene.tracks})
    rows = []
    for number in range(count):
        turn, which = divmod(number, len(scene.targets))
        event = scene.targets[which]
        windows = [[round(a, 2), round(min(b, duration_s), 2)] for a, b in scene.windows(event)]
        clips = _relevant_clips(windows)
        rows.append(
            {
                "qid": (len(SPLITS) * index + SPLITS.index(split)) * _QIDS_PER_VIDEO + number,
                "query": wordings[event][turn],
                "duration": duration_s,
                "vid": video_id(split, index),
                "relevant_windows": windows,
                "relevant_clip_ids": clips,
                "saliency_scores": [_scores(scene, event, clip, scores) for clip in clips],
                "held_out_combination": is_held_out(event),
                "event": str(event),
                "video_events": shown,
            }
        )
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


def _scores(scene: Scene, event: Event, clip: int, rng: np.random.Generator) -> list[int]:
    """Three annotators' scores of a relevant clip: its worth, each seen a little differently."""
    worth = _worth(scene, event, clip)
    return [int(score) for score in np.clip(np.rint(4.0 * worth + rng.normal(0.0, 0.45, 3)), 0, 4)]


def _worth(scene: Scene, event: Event, clip: int) -> float:
    """0 to 1: near 1 in the middle of the event with the object large and fully in view, low at its borders."""
    times_s = clip * CLIP_S + CLIP_S * (np.arange(4) + 0.5) / 4
    total = 0.0
    for track in scene.tracks:
        if track.event != event:
            continue
        middle_s, half_s = (track.start_s + track.end_s) / 2, (track.end_s - track.start_s) / 2
        for time_s in times_s:
            if not track.start_s <= time_s < track.end_s:
                continue
            central = 1.0 - (abs(time_s - middle_s) / half_s) ** 2
            where = pose(track, float(time_s))
            large = min(1.0, where.radius / 0.15)
            blinking = 0.5 if event.action == "blink" else 0.0  # off is a part of blinking, not an absence
            total += 0.25 + 0.5 * central + 0.25 * max(blinking, where.in_view * large)
    return total / len(times_s)


# ---- rendering in processes ------------------------------------------------------------------------------------------


def _claim(out: Path, world: dict[str, int]) -> None:
    """Write out/world.json, or hold what it says against `world`."""
    path = out / "world.json"
    if not path.is_file():
        write_json(path, world)
        return
    stated = read_json(path, f"delete {out} or choose another folder")
    for field, value in world.items():
        got = stated.get(field) if isinstance(stated, dict) else None
        if got != value:
            raise ContractError(
                f"{out} holds demo videos made with {field} {got}, now {field} {value} is asked for: "
                "delete the folder or choose another"
            )


def _render_all(out: Path, seed: int, size: int, jobs: list[tuple[str, int]], workers: int) -> Iterator[None]:
    """Render jobs in any order; yields once for each."""
    if workers == 1 or len(jobs) < 2:
        for split, index in jobs:
            yield _render_one(out, seed, size, split, index)
        return
    # spawn: a fork of a process that runs threads (torch, onnxruntime) may hang
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)), multiprocessing.get_context("spawn"), end_with_parent, (os.getpid(),)
    )  # fmt: skip
    try:
        with interrupts_ignored():
            futures = [pool.submit(_render_one, out, seed, size, *job) for job in jobs]
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool as error:
        raise InputError("a rendering process died (out of memory?): run again, with one worker") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _render_one(out: Path, seed: int, size: int, split: str, index: int) -> None:
    scene, plan = story(seed, split, index)
    render_video(scene, plan, out / "videos" / f"{video_id(split, index)}.mp4", size=size)
