"""Rounding, suppression and the best few: against a literal slow implementation, and by hand."""

from __future__ import annotations

import copy
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdst_runtime.errors import InputError
from sdst_runtime.metrics.postprocess import Postprocess

SECONDS = st.one_of(st.integers(0, 40).map(lambda half: half / 2), st.floats(0, 20))
SCORES = st.one_of(st.sampled_from([0.1, 0.5, 0.9]), st.floats(0, 1))
WINDOW = st.tuples(SECONDS, SECONDS, SCORES).map(lambda w: [min(w[:2]), max(w[:2]), w[2]])
ROWS = st.lists(st.lists(WINDOW, min_size=1, max_size=9), min_size=1, max_size=5).map(
    lambda lists: [row(windows, qid) for qid, windows in enumerate(lists)]
)


def row(windows: list[list[float]], qid: int = 0) -> dict:
    return {"qid": qid, "query": "a ring", "vid": "v", "pred_relevant_windows": windows, "pred_saliency_scores": [0.5]}


def windows_of(rows: list[dict]) -> list[list[list[float]]]:
    return [row["pred_relevant_windows"] for row in rows]


def slow_iou(a: list[float], b: list[float]) -> float:
    shared = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = (a[1] - a[0]) + (b[1] - b[0]) - shared
    return shared / union if union > 0 else 0.0


def slow_nms(windows: list[list[float]], threshold: float) -> list[list[float]]:
    kept: list[list[float]] = []
    for window in sorted(windows, key=lambda w: -w[2]):
        if all(slow_iou(window, better) < threshold for better in kept):
            kept.append(window)
    return kept


@settings(max_examples=150, deadline=None)
@given(rows=ROWS, threshold=st.sampled_from([0.25, 0.5, 0.7, 1.0]))
def test_suppression_equals_the_literal_one(rows, threshold):
    before = copy.deepcopy(rows)

    assert windows_of(Postprocess(nms=threshold)(rows)) == [slow_nms(w, threshold) for w in windows_of(rows)]
    assert rows == before


@settings(max_examples=150, deadline=None)
@given(rows=ROWS, unit_s=st.sampled_from([0.5, 1.0, 2.0, 3.0]), duration_s=st.floats(20, 23))
def test_rounded_windows_are_multiples_inside_the_video(rows, unit_s, duration_s):
    rounded = Postprocess(round_s=unit_s)(rows, {row["qid"]: duration_s for row in rows})

    for before, after in zip(windows_of(rows), windows_of(rounded), strict=True):
        for (start, end, score), (new_start, new_end, new_score) in zip(before, after, strict=True):
            assert 0 <= new_start < new_end <= duration_s
            assert new_start % unit_s == 0
            assert new_end % unit_s == 0 or new_end == duration_s
            assert max(abs(new_start - start), abs(new_end - end)) <= unit_s
            assert new_score == score


def test_by_hand():
    windows = [[0, 9.0, 0.2], [1.2, 9.4, 0.9], [20.0, 30.0, 0.5], [19.0, 30.0, 0.6], [40.0, 40.0, 0.1]]
    rows = [row(windows)]

    assert windows_of(Postprocess(nms=0.8)(rows)) == [[windows[1], windows[3], windows[4]]]
    assert windows_of(Postprocess(nms=0.95)(rows)) == [[windows[i] for i in (1, 3, 2, 0, 4)]]
    assert windows_of(Postprocess(max_windows=2)(rows)) == [[windows[1], windows[3]]]
    assert windows_of(Postprocess(round_s=2.0)(rows, {0: 41.0})) == [
        [[0, 10, 0.2], [2, 10, 0.9], [20, 30, 0.5], [20, 30, 0.6], [40, 41, 0.1]]
    ]
    both = Postprocess(nms=1.0, round_s=2.0, max_windows=3)(rows, {0: 41.0})
    assert windows_of(both) == [[[2, 10, 0.9], [20, 30, 0.6], [0, 10, 0.2]]], "equal only after rounding"


def test_rounding_without_durations_keeps_whole_units():
    rows = [row([[6.9, 7.4, 0.5], [0.1, 0.2, 0.4], [3.0, 5.0, 0.3]])]

    assert windows_of(Postprocess(round_s=2.0)(rows)) == [[[6, 8, 0.5], [0, 2, 0.4], [4, 6, 0.3]]]
    assert windows_of(Postprocess(round_s=2.0)(rows, {0: 7.4}))[0][0] == [6, 7.4, 0.5]


def test_everything_is_off_by_default():
    rows = [row([[4.3, 5.0, 0.1], [4.2, 5.0, 0.9]]), {"qid": 1}]

    assert Postprocess()(rows) == rows
    assert Postprocess(nms=0.5)([]) == []


def test_other_fields_stay():
    (after,) = Postprocess(max_windows=1)([row([[0.0, 1.0, 0.1]])])

    assert after == row([[0.0, 1.0, 0.1]])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"nms": 0.0}, "nms: expected an IoU above 0 and up to 1, got 0.0"),
        ({"nms": 1.1}, "nms: expected an IoU above 0 and up to 1, got 1.1"),
        ({"round_s": 0.0}, "round_s: expected a positive number of seconds, got 0.0"),
        ({"round_s": math.nan}, "round_s: expected a positive number of seconds, got nan"),
        ({"max_windows": 0}, "max_windows: expected at least 1, got 0"),
    ],
)
def test_bad_settings(fields, message):
    with pytest.raises(InputError, match=message):
        Postprocess(**fields)


def test_bad_windows_name_the_query():
    with pytest.raises(InputError, match="prediction qid 7: pred_relevant_windows: window 0 must be three finite"):
        Postprocess(nms=0.5)([row([[0.0, 1.0, 0.5]]), row([[0.0, math.nan, 0.5]], qid=7)])
