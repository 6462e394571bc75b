"""`sdst ground`: moments of videos for one or more sentences, as a table, JSON or a page."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from sdst_runtime import Grounder, Grounding, VideoFeatures
from sdst_runtime.contracts import EncodedVideo
from sdst_runtime.errors import InputError, PartialFailure
from sdst_runtime.grounding.pipeline import FailedVideo, Job, ground_videos
from sdst_runtime.machine import machine_facts, usable_cores
from sdst_runtime.pages.report import QueryPanel, Report, write_report
from sdst_runtime.strict_json import dump_json

from .consoles import make_console
from .panels import latency_rows, video_panel
from .videos import LIST, read_list


def ground(
    video: tyro.conf.Positional[Path],
    queries: tyro.conf.Positional[tuple[str, ...]],
    *,
    bundle: Path,
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    report: Path | None = None,
    top: int = 5,
    window: int | None = None,
    threads: int | None = None,
) -> None:
    """Find the moments of a video that each sentence describes, and how much each clip is a highlight.

    Of a list of videos each is asked all sentences. One that cannot be used is named on stderr, the others are done
    and the exit code is 1.

    Args:
        video: A video file, or a .txt file with the path of one on each line.
        queries: One sentence or more, each quoted.
        bundle: The directory that `sdst export` or `sdst demo` wrote.
        json: Print JSON with all moments and the saliency of each clip: one line a video.
        report: Write an HTML page to this file; of one video only.
        top: Moments in the table for each sentence.
        window: Clips that the model sees at once of a longer video; default: the median length of those that it was
            trained on, for videos longer than all of these.
        threads: Threads for each model; default: all cores, of a list all but the one that decodes.
    """
    if top < 1:
        raise InputError(f"--top: expected at least 1, got {top}")
    if not queries:
        raise InputError('no query given: expected  sdst ground VIDEO "a sentence" ... --bundle DIR')
    is_list = video.suffix == LIST
    if is_list and report is not None:
        raise InputError("--report: expected one video, got a list of them; leave it out, or give one video")
    videos = read_list(video) if is_list else []
    if is_list and threads is None:
        threads = max(1, usable_cores() - 1)
    with Grounder.load(bundle, threads, window_clips=window) as grounder:
        for query in queries:  # refuse a bad sentence before a video is decoded
            grounder.check(query)
        if is_list:
            ground_each(grounder, videos, queries, json, top)
            return
        encoded = grounder.encode(video)
        answers = grounder.ground_batch(encoded, queries)
        if report is not None:
            write_report(report, single_report(video, grounder, encoded, answers))
        print_answers(video, encoded, answers, json, top)


def ground_each(grounder: Grounder, videos: Sequence[Path], queries: Sequence[str], json: bool, top: int) -> None:
    """Print the answers about each video as soon as it is done, in order. Raises PartialFailure when some failed."""
    failed = 0
    for done in ground_videos(grounder, (Job(path, queries) for path in videos)):
        if isinstance(done, FailedVideo):
            failed += 1
            print(f"failed: {done.reason}", file=sys.stderr)  # noqa: T201
        else:
            print_answers(done.path, done.video, done.groundings, json, top)
    if failed:
        raise PartialFailure(f"{failed} of {len(videos)} videos failed, as said above; the others are done")


def print_answers(video: Path, encoded: EncodedVideo, answers: Sequence[Grounding], json: bool, top: int) -> None:
    """A line of JSON or a table on stdout; on stderr what was wrong with the file."""
    for warning in (*encoded.warnings, *unknown_words(answers)):
        print(f"warning: {warning}", file=sys.stderr)  # noqa: T201
    if json:
        print(dump_json(as_json(video, encoded, answers)), flush=True)  # noqa: T201
    else:
        print_table(video, encoded, answers, top)


def unknown_words(answers: Sequence[Grounding]) -> list[str]:
    """What the model does not know of each sentence, a line each; of most sentences nothing."""
    return [
        f"the model does not know {', '.join(map(repr, answer.unknown_words))} and answered {answer.query!r} without"
        for answer in answers if answer.unknown_words
    ]  # fmt: skip


def as_json(video: Path, features: VideoFeatures, answers: Sequence[Grounding]) -> dict[str, Any]:
    """The documented JSON of `sdst ground --json`."""
    return {
        "video": str(video),
        "duration_s": features.duration_s,
        "clip_s": features.spec.clip_s,
        "results": [
            {
                "query": answer.query,
                "unknown_words": list(answer.unknown_words),
                "moments": [{"start_s": m.start_s, "end_s": m.end_s, "score": m.score} for m in answer.moments],
                "saliency": [float(value) for value in answer.saliency],
            }
            for answer in answers
        ],
    }


def print_table(video: Path, features: VideoFeatures, answers: Sequence[Grounding], top: int) -> None:
    """The best moments of each sentence, for a person."""
    from rich.table import Table

    console = make_console()
    console.print(f"{video}  {features.duration_s:.2f} s, {len(features.features)} clips")
    for answer in answers:
        console.print()
        console.print(answer.query, style="bold")
        table = Table()
        for column in ("start s", "end s", "score"):
            table.add_column(column, justify="right")
        for moment in answer.moments[:top]:
            table.add_row(f"{moment.start_s:.2f}", f"{moment.end_s:.2f}", f"{moment.score:.3f}")
        console.print(table)


def single_report(video: Path, grounder: Grounder, features: EncodedVideo, answers: Sequence[Grounding]) -> Report:
    """A page about one video."""
    panel = video_panel(video, features, tuple(QueryPanel(answer) for answer in answers))
    return Report(
        title="Moments",
        subtitle=f"{video.name}: {len(answers)} {'query' if len(answers) == 1 else 'queries'}",
        videos=(panel,),
        latency=latency_rows(grounder, len(features.features)),
        machine=machine_facts(),
        facts=(("bundle", str(grounder.bundle.directory)), ("backbone", features.spec.backbone)),
        notes=(*features.warnings, *unknown_words(answers)),
    )
