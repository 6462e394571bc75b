"""`sdst ground`: moments of one video for one or more sentences, as a table, JSON or a page."""

from __future__ import annotations

import json as json_module
import sys
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import tyro

from sdst_runtime import Grounder, Grounding, VideoFeatures
from sdst_runtime.errors import InputError
from sdst_runtime.machine import machine_facts
from sdst_runtime.media import key_frames
from sdst_runtime.report import QueryPanel, Report, StageLatency, VideoPanel, write_report

KEY_FRAMES = 10
KEY_FRAME_HEIGHT = 144  # pixels


def ground(
    video: tyro.conf.Positional[Path],
    queries: tyro.conf.Positional[tuple[str, ...]],
    *,
    bundle: Path,
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    report: Path | None = None,
    top: int = 5,
    threads: int | None = None,
) -> None:
    """Find the moments of a video that each sentence describes, and how much each clip is a highlight.

    Args:
        video: A video file.
        queries: One sentence or more, each quoted.
        bundle: The directory that `sdst export` or `sdst demo` wrote.
        json: Print JSON with all moments and the saliency of each clip.
        report: Write an HTML page to this file.
        top: Moments in the table for each sentence.
        threads: Threads for each model; default: all cores.
    """
    if top < 1:
        raise InputError(f"--top: expected at least 1, got {top}")
    if not queries:
        raise InputError('no query given: expected  sdst ground VIDEO "a sentence" ... --bundle DIR')
    grounder = Grounder.load(bundle, threads)
    for query in queries:  # refuse a bad sentence before the video is decoded
        grounder.tokenizer.encode(query, grounder.spec.max_tokens)
    features = grounder.encode(video)
    answers = grounder.ground_batch(features, queries)
    for warning in grounder.warnings:
        print(f"warning: {warning}", file=sys.stderr)  # noqa: T201
    if report is not None:
        write_report(report, single_report(video, grounder, features, answers))
    if json:
        print(json_module.dumps(as_json(video, features, answers)))  # noqa: T201
    else:
        print_table(video, features, answers, top)


def as_json(video: Path, features: VideoFeatures, answers: list[Grounding]) -> dict[str, Any]:
    """The documented JSON of `sdst ground --json`."""
    return {
        "video": str(video),
        "duration_s": features.duration_s,
        "clip_s": features.spec.clip_s,
        "results": [
            {
                "query": answer.query,
                "moments": [{"start_s": m.start_s, "end_s": m.end_s, "score": m.score} for m in answer.moments],
                "saliency": [float(value) for value in answer.saliency],
            }
            for answer in answers
        ],
    }


def print_table(video: Path, features: VideoFeatures, answers: list[Grounding], top: int) -> None:
    """The best moments of each sentence, for a person."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    console.print(f"{escape(str(video))}  {features.duration_s:.2f} s, {len(features.features)} clips")
    for answer in answers:
        console.print(f"\n[bold]{escape(answer.query)}[/bold]")
        table = Table()
        for column in ("start s", "end s", "score"):
            table.add_column(column, justify="right")
        for moment in answer.moments[:top]:
            table.add_row(f"{moment.start_s:.2f}", f"{moment.end_s:.2f}", f"{moment.score:.3f}")
        console.print(table)


def single_report(video: Path, grounder: Grounder, features: VideoFeatures, answers: list[Grounding]) -> Report:
    """A page about one video."""
    panel = video_panel(video, features, tuple(QueryPanel(answer) for answer in answers))
    return Report(
        title="Moments",
        subtitle=f"{video.name}: {len(answers)} {'query' if len(answers) == 1 else 'queries'}",
        videos=(panel,),
        latency=latency_rows(grounder, len(features.features)),
        machine=machine_facts(),
        facts=(("bundle", str(grounder.bundle.directory)), ("backbone", features.spec.backbone)),
        notes=tuple(grounder.warnings),
    )


def video_panel(video: Path, features: VideoFeatures, queries: tuple[QueryPanel, ...], note: str = "") -> VideoPanel:
    """A video with evenly spaced key frames."""
    times = [(i + 0.5) * features.duration_s / KEY_FRAMES for i in range(KEY_FRAMES)]
    frames = tuple(zip(times, key_frames(video, times, KEY_FRAME_HEIGHT), strict=True))
    return VideoPanel(video.name, features.duration_s, frames, queries, note)


def latency_rows(grounder: Grounder, clips: int | None) -> tuple[StageLatency, ...]:
    """Median of each stage; `clips` when every sample handled as many."""
    samples = grounder.timings.samples
    rows = [
        StageLatency(stage, 1e3 * median(samples[stage]), len(samples[stage]), note, of_clips)
        for stage, note, of_clips in (
            ("decode", "a video", clips),
            ("vision", "a video", clips),
            ("text", "a call", None),
            ("head", "a call", None),
        )
        if samples[stage]
    ]
    total = sum(row.median_ms or 0 for row in rows)
    return (*rows, StageLatency("total", total, min((row.samples for row in rows), default=0), "sum of the medians"))
