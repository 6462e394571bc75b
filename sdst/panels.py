"""What pages about grounded videos show beside the answers: key frames, and how long each stage took."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import median

from sdst_runtime import Grounder, VideoFeatures
from sdst_runtime.media.clips import key_frames
from sdst_runtime.pages.panels import QueryPanel, VideoPanel, shown_moments
from sdst_runtime.pages.report import StageLatency

KEY_FRAMES = 10
KEY_FRAME_HEIGHT = 144  # pixels


def video_panel(video: Path, features: VideoFeatures, queries: tuple[QueryPanel, ...], note: str = "") -> VideoPanel:
    """A video that the page plays, with evenly spaced key frames and a picture from the middle of each shown moment."""
    strip = [(i + 0.5) * features.duration_s / KEY_FRAMES for i in range(KEY_FRAMES)]
    middles = [[(m.start_s + m.end_s) / 2 for m in shown_moments(query.grounding)] for query in queries]
    pictures = iter(key_frames(video, [*strip, *(time_s for times in middles for time_s in times)], KEY_FRAME_HEIGHT))
    frames = tuple(zip(strip, islice(pictures, KEY_FRAMES), strict=True))
    pictured = tuple(
        replace(query, pictures=tuple(islice(pictures, len(times))))
        for query, times in zip(queries, middles, strict=True)
    )
    return VideoPanel(video.name, features.duration_s, frames, pictured, note, file=video)


def latency_rows(grounder: Grounder, clips: int | None) -> tuple[StageLatency, ...]:
    """Median of each stage; `clips` when every sample handled as many."""
    samples = grounder.timings.samples
    rows = [
        StageLatency(stage, 1e3 * median(samples[stage]), len(samples[stage]), note, of_clips)
        for stage, note, of_clips in (
            ("decode", "a video", clips),
            ("vision", "a video", clips),
            ("projection", "a video", clips),
            ("text", "a call", None),
            ("head", "a call", None),
        )
        if samples[stage]
    ]
    total = sum(row.median_ms or 0 for row in rows)
    return (*rows, StageLatency("total", total, min((row.samples for row in rows), default=0), "sum of the medians"))
