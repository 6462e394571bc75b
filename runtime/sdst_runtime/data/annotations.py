"""Annotation files, each in the form its data set is released in, to rows in the QVHighlights form.

A row holds qid, query, vid, duration (seconds), relevant_windows ([[start, end], ...], seconds) and, where clips were
scored, relevant_clip_ids and saliency_scores (a list of the annotators' scores a clip). A query about what the video
does not show has no window and says `"absent": true`. docs/data.md shows the forms.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ..errors import InputError
from ..files import read_jsonl
from ..strict_json import Misfit, parse_value, read_json
from ..text import read_lines, read_text
from .repairs import Count, Repairs, swapped

Row = dict[str, Any]  # one annotation or one prediction in the QVHighlights form
_FINITE = {"allow_inf_nan": False}
_MEND = "mend the row or leave it out of the annotations"


@dataclass(frozen=True)
class Annotations:
    """The queries of one file, windows with their start before their end and nothing else changed."""

    rows: list[Row]
    repairs: Repairs


@dataclass(frozen=True)
class Query:
    """A sentence, and the query and the video it belongs to."""

    qid: int | str
    query: str
    vid: str


def read_annotations(path: Path, durations: Sequence[Path] = (), *, labelled: bool = True) -> Annotations:
    """Read a file by its suffix: .jsonl QVHighlights, .txt Charades-STA, .json TACoS or a list of QVHighlights rows.

    `durations` are CSV files with columns id and length (seconds), which .txt needs. Without `labelled` a row may have
    no window. Raises InputError naming the file and the line, video or qid that is wrong.
    """
    rows = read_rows(path, durations)
    for fault in row_faults(rows, labelled).values():
        raise InputError(f"{path}, {fault}")
    return in_order(rows)


def read_rows(path: Path, durations: Sequence[Path] = ()) -> list[Row]:
    """Rows that are not checked yet (`row_faults`). Raises InputError for an empty file or one of another form."""
    path = Path(path)
    if path.suffix == ".jsonl":
        rows = read_jsonl(path)
    elif path.suffix == ".txt":
        rows = list(_with_durations(path, _read_durations(durations), durations))
    elif path.suffix == ".json":
        rows = _read_json(path)
    else:
        raise InputError(f"{path}: expected annotations in a .jsonl, .txt or .json file, got {path.suffix!r}")
    if not rows:
        raise InputError(f"{path}: no annotations in it")
    return rows


def read_queries(path: Path) -> list[Query]:
    """The sentences of a file in any of the forms, qids and vids as `read_rows` gives them; durations are not needed.

    Raises InputError naming the file and the line, video or qid that is wrong in these fields.
    """
    rows = list(_charades(path)) if Path(path).suffix == ".txt" else read_rows(path)
    queries = []
    for i, row in enumerate(rows):
        try:
            queries.append(parse_value(Query, row, "ignore"))
        except Misfit as fault:
            raise InputError(f"{path}, {_name(row, i)}: {fault}") from fault
        if not queries[-1].query.strip():
            raise InputError(f"{path}, {_name(row, i)}: query is empty; {_MEND}")
    if not queries:
        raise InputError(f"{path}: no annotations in it")
    return queries


def row_faults(rows: Sequence[Row], labelled: bool = True) -> dict[int, str]:
    """What is wrong with rows: index to "qid 7: the fault", sound rows left out."""
    faults: dict[int, str] = {}
    seen: set[int | str] = set()
    for i, row in enumerate(rows):
        parsed = _parse(row)
        fault = parsed if isinstance(parsed, str) else _fault(parsed, labelled) or _qid_fault(parsed.qid, seen)
        if fault:
            faults[i] = f"{_name(row, i)}: {fault}"
        else:
            seen.add(row["qid"])
    return faults


def in_order(rows: Sequence[Row]) -> Annotations:
    """Checked rows with reversed windows swapped, and how many there were."""
    repairs, mended = Repairs(), []
    for row in rows:
        number = sum(start > end for start, end in row.get("relevant_windows", ()))
        if number:
            row = row | {"relevant_windows": [list(window) for window in swapped(row["relevant_windows"])]}
            repairs += Repairs(reversed=Count(number, f"qid {row['qid']}"))
        mended.append(row)
    return Annotations(mended, repairs)


def check_annotation(row: Row, source: str | Path) -> None:
    """Raise InputError naming `source`, the qid and the first field that does not fit the QVHighlights form."""
    for fault in row_faults([row]).values():
        raise InputError(f"{source}, {fault}")


def is_absent(row: Row) -> bool:
    """Whether a row says that its event is not in the video."""
    return bool(row.get("absent"))


def clips_of(duration_s: float, clip_s: float) -> int:
    """How many clips a duration has; the last may be cut short, by more than rounding."""
    return max(1, math.ceil(duration_s / clip_s - 1e-6))


# ---------------------------------------------------------------- checks


@dataclass(frozen=True)
class _Annotation:
    """What a row may hold, and more; all without a default must be there."""

    __pydantic_config__: ClassVar[dict[str, bool]] = _FINITE

    qid: int | str
    query: str
    vid: str
    duration: float
    relevant_windows: list[tuple[float, float]] = field(default_factory=list)
    relevant_clip_ids: list[int] = field(default_factory=list)
    saliency_scores: list[list[float]] = field(default_factory=list)
    absent: bool = False  # the event is not in the video
    event: str = ""  # what the sentence is about: sentences of one event mean the same
    video_events: list[str] = field(default_factory=list)  # all that the video shows


@dataclass(frozen=True)
class _TacosVideo:
    """What TACoS' JSON holds for a video."""

    __pydantic_config__: ClassVar[dict[str, bool]] = _FINITE

    timestamps: list[tuple[float, float]]  # frames
    sentences: list[str]
    fps: float
    num_frames: float


def _parse(row: Row) -> _Annotation | str:
    """The row, or what is wrong with it."""
    try:
        return parse_value(_Annotation, row, "ignore")
    except Misfit as fault:
        return str(fault)


def _name(row: Row, index: int) -> str:
    return f"qid {row['qid']}" if "qid" in row else f"row {index + 1}"


def _fault(row: _Annotation, labelled: bool) -> str:
    if not row.query.strip():
        return f"query is empty; {_MEND}"
    if row.duration <= 0:
        return f"duration is {row.duration}; {_MEND}"
    if row.absent and (row.relevant_windows or row.relevant_clip_ids):
        return f"absent is true, and it has windows or clips; {_MEND}"
    if labelled and not row.relevant_windows and not row.absent:
        return f'no relevant window; {_MEND}, or say "absent": true of an event that the video does not show'
    ids, scores = len(row.relevant_clip_ids), len(row.saliency_scores)
    widths = set(map(len, row.saliency_scores))
    if ids != scores or len(widths) > 1 or 0 in widths:
        expected = f"expected one row of saliency_scores, all of one length, for each of {ids} relevant_clip_ids"
        return f"{expected}, got {scores} rows"
    if min(map(min, row.saliency_scores), default=0) < 0:
        return "saliency_scores: expected scores of 0 or more"
    return ""


def _qid_fault(qid: int | str, seen: set[int | str]) -> str:
    if qid in seen:
        return "occurs more than once; qids must differ"
    if seen and not isinstance(qid, type(next(iter(seen)))):
        return "some qids are numbers, some are text; make them all one or the other"
    return ""


# ---------------------------------------------------------------- forms


def _charades(path: Path) -> Iterator[Row]:
    """Lines `VID START END##sentence.`, which hold no duration; the qid is the line's number, from 0."""
    for number, line in enumerate(read_lines(path)):
        if not line.strip():
            continue
        times, separator, sentence = line.partition("##")
        try:
            vid, start, end = times.split()
            window = [float(start), float(end)]
        except ValueError:
            separator = ""
        if not separator:
            raise InputError(f"{path}, line {number + 1}: expected VID START END##sentence, got {line.strip()[:60]!r}")
        yield {"qid": number, "query": sentence.strip(), "vid": vid, "relevant_windows": [window]}


def _with_durations(path: Path, durations_s: dict[str, float], sources: Sequence[Path]) -> Iterator[Row]:
    for row in _charades(path):
        if row["vid"] not in durations_s:
            names = ", ".join(map(str, sources)) or "no file: set data.durations to the CSV files of the data set"
            raise InputError(f"{path}, line {row['qid'] + 1}: no duration of video {row['vid']} in {names}")
        yield row | {"duration": durations_s[row["vid"]]}


def _read_durations(paths: Sequence[Path]) -> dict[str, float]:
    durations_s = {}
    for path in paths:
        table = csv.DictReader(io.StringIO(read_text(path), newline=""))
        if not {"id", "length"} <= set(table.fieldnames or ()):
            raise InputError(
                f"{path}: expected a CSV file with columns id and length, got {str(table.fieldnames)[:200]}"
            )
        for row in table:
            try:
                durations_s[row["id"]] = float(row["length"])
            except (TypeError, ValueError) as error:
                told = row["length"] and row["length"][:40]
                raise InputError(
                    f"{path}, line {table.line_num}: expected seconds in column length, got {told!r}"
                ) from error
    return durations_s


def _read_json(path: Path) -> list[Row]:
    content = read_json(path)
    if isinstance(content, dict):
        return [row for name, video in content.items() for row in _tacos(path, name, video)]
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise InputError(f"{path}: expected an object of videos (TACoS) or a list of objects (QVHighlights)")
    return content


def _tacos(path: Path, name: str, content: Any) -> Iterator[Row]:
    """The 2D-TAN form: frames become seconds; qids are the video's name and the sentence's number, from 0."""
    try:
        video = parse_value(_TacosVideo, content, "ignore")
    except Misfit as fault:
        raise InputError(f"{path}, video {name}: {fault}") from fault
    if video.fps <= 0:
        raise InputError(f"{path}, video {name}: expected fps above 0, got {video.fps}")
    if len(video.timestamps) != len(video.sentences):
        counts = f"{len(video.timestamps)} timestamps and {len(video.sentences)} sentences"
        raise InputError(f"{path}, video {name}: expected as many timestamps as sentences, got {counts}")
    vid = name.removesuffix(".avi")
    for i, ((start, end), sentence) in enumerate(zip(video.timestamps, video.sentences, strict=True)):
        yield {
            "qid": f"{vid}_{i}",
            "query": sentence.strip(),
            "vid": vid,
            "duration": video.num_frames / video.fps,
            "relevant_windows": [[start / video.fps, end / video.fps]],
        }
