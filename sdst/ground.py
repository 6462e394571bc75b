"""`sdst ground`: moments of videos for one or more sentences, as a table, JSON or a page."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from sdst_runtime import Grounder, Grounding, VideoFeatures
from sdst_runtime.contracts import EncodedVideo
from sdst_runtime.errors import InputError, PartialFailure
from sdst_runtime.grounding.decode import answer_json
from sdst_runtime.grounding.pipeline import FailedVideo, Job, ground_videos
from sdst_runtime.machine import load_warning, machine_facts, usable_cores
from sdst_runtime.showing import presence_text
from sdst_runtime.strict_json import dump_json

from .asked import videos_and_sentences, without
from .consoles import make_console
from .progress import Told, told

if TYPE_CHECKING:
    from sdst_runtime.pages.report import Report

USAGE = 'sdst ground VIDEO "a sentence" ... --bundle DIR'


def ground(
    videos_or_sentences: tyro.conf.Positional[tuple[str, ...]],
    *,
    bundle: Path,
    query: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    report: Path | None = None,
    cache: Path | None = None,
    top: int = 5,
    window: int | None = None,
    threads: int | None = None,
    threshold: float | None = None,
) -> None:
    """Find the moments of videos that each sentence describes, and how much each clip is a highlight.

    sdst ground VIDEO [VIDEO ...] "a sentence" ["another" ...] --bundle DIR

    Each video is asked all sentences. Of several, one that cannot be used is named on stderr, the others are done and
    the exit code is 1.

    Args:
        videos_or_sentences: Both, in any order. A word that names a file, a folder of videos, a pattern of files
            ('clips/*.mp4') or a .txt file with a path a line is a video; every other one is a sentence, in quotes.
        bundle: The directory that `sdst export` or `sdst demo` wrote.
        query: A sentence, whatever it looks like; may be given several times.
        json: Print JSON with all moments and the saliency of each clip: one object a video, each on a line.
        report: Write an HTML page to this file; of one video only.
        cache: Folder where encoded videos are kept: another question about a video of the same content, with the same
            bundle, does not run the vision model again.
        top: Moments in the table for each sentence.
        window: Clips that the model sees at once of a longer video; default: the median length of those that it was
            trained on, for videos longer than all of these.
        threads: Threads for each model; default: all cores, of several videos all but the one that decodes.
        threshold: An answer whose presence, 0 to 1, is below has no moments. For bundles of models that were trained
            with --data.negatives: others do not say whether an event is in a video at all.
    """
    load = load_warning()
    if top < 1:
        raise InputError(f"--top: expected at least 1, got {top}")
    videos, sentences, many = videos_and_sentences(videos_or_sentences)
    queries = (*sentences, *query)
    if not videos:
        given = ", ".join(map(repr, sentences)) or "nothing"
        raise InputError(f"no video given: expected  {USAGE}; got {given}, which names no file")
    if not queries:
        raise InputError(f"no query given: expected  {USAGE}")
    if many and report is not None:
        raise InputError(f"--report: expected one video, got a list, a folder or several ({len(videos)}); leave it out")
    if many and threads is None:
        threads = max(1, usable_cores() - 1)
    with Grounder.load(bundle, threads, window_clips=window, cache=cache, threshold=threshold) as grounder:
        for sentence in queries:  # refuse a bad one before a video is decoded
            grounder.check(sentence)
        if many:
            ground_each(grounder, videos, queries, json, top)
            return
        (video,) = videos
        with told(f"encoding {video.name}", "clips") as bar:
            encoded = grounder.encode(video, on_progress=bar.show)
        answers = grounder.ground_batch(encoded, queries)
        if report is not None:
            from sdst_runtime.pages.report import write_report

            write_report(report, single_report(video, grounder, encoded, answers, load))
        print_answers(video, encoded, answers, json, top)


def ground_each(grounder: Grounder, videos: Sequence[Path], queries: Sequence[str], json: bool, top: int) -> None:
    """Print the answers about each video as soon as it is done, in order. Raises PartialFailure when some failed."""
    failed = 0
    with told("videos", "videos") as bar:
        bar.show(0, len(videos))
        said = _ClipsOf(bar)
        stream = ground_videos(grounder, (Job(path, queries) for path in videos), said.hear)
        for count, done in enumerate(stream, 1):
            with bar.hidden():
                if isinstance(done, FailedVideo):
                    failed += 1
                    print(f"failed: {done.reason}", file=sys.stderr)  # noqa: T201
                else:
                    print_answers(done.path, done.video, done.groundings, json, top)
            bar.show(count, len(videos))
    if failed:
        raise PartialFailure(f"{failed} of {len(videos)} videos failed, as said above; the others are done")


class _ClipsOf:
    """How far the vision model is in the video it is at, as the title of a bar."""

    def __init__(self, bar: Told) -> None:
        self._bar, self._path, self._clips = bar, Path(), 0

    def hear(self, path: Path, clips: int) -> None:
        """`clips` more of `path` are done."""
        self._clips = clips + (self._clips if path == self._path else 0)
        self._path = path
        self._bar.name(f"videos; {path.name}: {self._clips} clips")


def print_answers(video: Path, encoded: EncodedVideo, answers: Sequence[Grounding], json: bool, top: int) -> None:
    """A line of JSON or a table on stdout; on stderr what was wrong with the file."""
    for warning in (*encoded.warnings, *unknown_words(answers)):
        print(f"warning: {warning}", file=sys.stderr)  # noqa: T201
    if json:
        print(dump_json(answer_json(str(video), encoded, answers)), flush=True)  # noqa: T201
    else:
        print_table(video, encoded, answers, top)


def unknown_words(answers: Sequence[Grounding]) -> list[str]:
    """What the model does not know of each sentence, a line each; of most sentences nothing."""
    return [without(answer.query, answer.unknown_words) for answer in answers if answer.unknown_words]


def print_table(video: Path, features: VideoFeatures, answers: Sequence[Grounding], top: int) -> None:
    """The best moments of each sentence, for a person."""
    from rich.table import Table

    console = make_console()
    console.print(f"{video}  {features.duration_s:.2f} s, {len(features.features)} clips")
    for answer in answers:
        console.print()
        console.print(answer.query, style="bold")
        if answer.presence is not None:
            console.print(presence_text(answer.presence, bool(answer.moments)))
        if not answer.moments:
            continue
        table = Table()
        for column in ("start s", "end s", "score"):
            table.add_column(column, justify="right")
        for moment in answer.moments[:top]:
            table.add_row(f"{moment.start_s:.2f}", f"{moment.end_s:.2f}", f"{moment.score:.3f}")
        console.print(table)


def single_report(
    video: Path, grounder: Grounder, features: EncodedVideo, answers: Sequence[Grounding], load: str = ""
) -> Report:
    """A page about one video; `load` is what `load_warning` said before the times were taken."""
    from sdst_runtime.pages.panels import QueryPanel
    from sdst_runtime.pages.report import Report

    from .panels import latency_rows, video_panel

    panel = video_panel(video, features, tuple(QueryPanel(answer) for answer in answers))
    return Report(
        title="Moments",
        subtitle=f"{video.name}: {len(answers)} {'query' if len(answers) == 1 else 'queries'}",
        videos=(panel,),
        latency=latency_rows(grounder, len(features.features)),
        machine=machine_facts(),
        facts=(("bundle", str(grounder.bundle.directory)), ("backbone", features.spec.backbone)),
        warnings=(load,) if load else (),
        notes=(*features.warnings, *unknown_words(answers)),
    )
