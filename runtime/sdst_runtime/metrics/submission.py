"""A submission to the QVHighlights server: two files of predictions, checked, and a flat zip of both."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.annotations import Row, clips_of
from ..errors import InputError
from ..files import write_bytes
from ..strict_json import dump_json

KEYS = ("qid", "query", "vid", "pred_relevant_windows", "pred_saliency_scores")
FILES = ("hl_val_submission.jsonl", "hl_test_submission.jsonl")  # names that the server asks for
ARCHIVE = "submission.zip"
LOWEST_SALIENCY = -1.0  # saliency is a cosine


def complete_saliency(rows: Sequence[Row], expected_rows: Sequence[Row], clip_s: float) -> list[Row]:
    """The rows with a score for every clip of the video: those that the features do not reach have the lowest."""
    clips = {row["qid"]: clips_of(row["duration"], clip_s) for row in expected_rows}
    completed = []
    for row in rows:
        scores = row["pred_saliency_scores"]
        missing = clips[row["qid"]] - len(scores)
        completed.append({**row, "pred_saliency_scores": [*scores, *[LOWEST_SALIENCY] * missing]})
    return completed


def check_predictions(
    rows: Sequence[Row], expected_rows: Sequence[Row], clip_s: float, max_windows: int = 10
) -> None:  # fmt: skip
    """Raise InputError unless `rows` answer exactly the annotations `expected_rows`, as the server wants it.

    Each qid once with the annotation's query and vid; 1 to `max_windows` windows, by descending score, finite, inside
    the video and not empty; a finite saliency score for each clip of `clip_s` seconds. The message names the first
    qid that is wrong, and how many more are.
    """
    expected = {row["qid"]: row for row in expected_rows}
    seen: set[Any] = set()
    problems = []
    for row in rows:
        qid = row.get("qid")
        problem = (
            "occurs more than once"
            if qid in seen
            else "is not in the annotations"
            if qid not in expected
            else _fault(row, expected[qid], clip_s, max_windows)
        )
        seen.add(qid)
        if problem:
            problems.append(f"qid {qid!r} {problem}")
    problems += [f"qid {qid!r} has no prediction" for qid in expected if qid not in seen]
    if problems:
        more = f"; {len(problems) - 1} more problems" if len(problems) > 1 else ""
        raise InputError(f"not a valid submission: {problems[0]}{more}; predict this split again with its annotations")


def write_submission(directory: Path, val_rows: Sequence[Row], test_rows: Sequence[Row]) -> Path:
    """Write the two files and submission.zip, each atomically and with the same bytes for the same rows.

    The rows must have passed `check_predictions`; other keys than the server's are left out. Returns the zip's path.
    Raises InputError when `directory` cannot be written.
    """
    contents = {name: _jsonl(rows) for name, rows in zip(FILES, (val_rows, test_rows), strict=True)}
    for name, content in contents.items():
        write_bytes(directory / name, content)
    write_bytes(directory / ARCHIVE, _zip(contents))
    return directory / ARCHIVE


def _fault(row: Row, annotation: Row, clip_s: float, max_windows: int) -> str:
    for key in ("query", "vid"):
        if row.get(key) != annotation[key]:
            return f"has the {key} {row.get(key)!r:.60}, the annotation {annotation[key]!r:.60}"
    return _fault_of_windows(row.get("pred_relevant_windows"), annotation["duration"], max_windows) or (
        _fault_of_saliency(row.get("pred_saliency_scores"), clips_of(annotation["duration"], clip_s))
    )


def _fault_of_windows(windows: Any, duration_s: float, max_windows: int) -> str:
    if not isinstance(windows, list) or not 1 <= len(windows) <= max_windows:
        count = len(windows) if isinstance(windows, list) else "no list"
        return f"needs 1 to {max_windows} windows, got {count}"
    for window in windows:
        if not _are_numbers(window, 3):
            return f"has a window that is not three finite numbers, {window!r:.60}"
        start_s, end_s, _ = window
        if start_s >= end_s:
            return f"has a window that does not end after it starts, {window!r:.60} (round_s widens empty ones)"
        if start_s < 0 or end_s > duration_s:
            return f"has a window outside 0 to {duration_s} s, {window!r:.60}"
    scores = [score for _, _, score in windows]
    return "" if scores == sorted(scores, reverse=True) else "has windows that are not sorted by descending score"


def _fault_of_saliency(scores: Any, clips: int) -> str:
    if _are_numbers(scores, clips):
        return ""
    return f"needs {clips} finite saliency scores, got {len(scores) if isinstance(scores, list) else 'no list'}"


def _are_numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == count
        and all(isinstance(value, int | float) and math.isfinite(value) for value in values)
    )


def _jsonl(rows: Sequence[Row]) -> bytes:
    lines = (dump_json({key: row[key] for key in KEYS}, ensure_ascii=False) + "\n" for row in rows)
    return "".join(lines).encode()


def _zip(contents: dict[str, bytes]) -> bytes:
    """Flat, with fixed times and rights."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in contents.items():
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
