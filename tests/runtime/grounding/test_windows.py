"""Long videos: how they are cut into windows, and one answer made of the windows'."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdst_runtime.contracts import Grounding, Moment, Window
from sdst_runtime.errors import InputError
from sdst_runtime.grounding.windows import OVERLAP, SAME, SMALLEST, blend, merge, split


def answer(window: Window, *moments: tuple[float, float, float], clip_s: float = 1.0) -> Grounding:
    """What a window says: (start, end, score) in the video's seconds."""
    offset_s = window.start * clip_s
    shifted = sorted((Moment(s - offset_s, e - offset_s, score) for s, e, score in moments), key=lambda m: -m.score)
    return Grounding("q", tuple(shifted), np.zeros(window.clips, np.float32), clip_s)


def merged(*views: tuple[Window, Sequence[tuple[float, float, float]]]) -> list[tuple[float, float, float]]:
    result = merge([window for window, _ in views], [answer(window, *moments) for window, moments in views])
    return [(m.start_s, m.end_s, m.score) for m in result.moments]


# ---------------------------------------------------------------- cutting


@given(st.integers(1, 6000), st.integers(SMALLEST, 1200))
def test_windows_cover_the_video_and_overlap_enough(clips, size):
    windows = split(clips, size)
    assert (windows[0].start, windows[-1].stop) == (0, clips)
    if clips <= size:
        assert windows == (Window(0, clips),)
        return
    assert {window.clips for window in windows} == {size}
    assert all(a.stop - b.start >= OVERLAP * size for a, b in pairwise(windows))
    assert all(a.start < b.start for a, b in pairwise(windows))
    assert len(windows) == 1 + math.ceil((clips - size) / (size - math.ceil(OVERLAP * size)))  # the fewest: linear


@given(st.integers(SMALLEST, 1200), st.integers(1, 6000))
def test_no_window_overlaps_more_than_two_on_a_side(size, more):
    windows = split(size + more, size)
    assert all(a.stop <= b.start for a, b in zip(windows, windows[3:]))


def test_a_window_too_small_is_refused():
    with pytest.raises(InputError, match="window: expected at least 8 clips, got 7"):
        split(100, 7)


# ---------------------------------------------------------------- moments

A, B, C, D = Window(0, 100), Window(75, 175), Window(150, 250), Window(225, 325)


def test_one_window_is_returned_as_it_is():
    alone = answer(A, (1, 2, 0.5))
    assert merge([A], [alone]) is alone


def test_moments_that_one_window_sees_stay_and_are_shifted():
    assert merged((A, [(5, 20, 0.9), (6, 21, 0.8)]), (B, [(110, 120, 0.95)])) == [
        (110, 120, 0.95), (5, 20, 0.9), (6, 21, 0.8),
    ]  # fmt: skip


@pytest.mark.parametrize(("presences", "expected"), [((0.2, 0.7, 0.4), 0.7), ((None,) * 3, None)])
def test_the_presence_is_the_largest_of_the_windows(presences, expected):
    answers = [replace(answer(w, (w.start, w.stop, 0.5)), presence=p) for w, p in zip((A, B, C), presences)]
    assert merge([A, B, C], answers).presence == expected
    assert merge([A], answers[:1]).presence == presences[0]


@pytest.mark.parametrize(("a_score", "b_score"), [(0.9, 0.8), (0.8, 0.9)])
def test_a_moment_in_the_overlap_comes_once_from_the_window_that_sees_it_better(a_score, b_score):
    early = merged((A, [(76, 84, a_score)]), (B, [(77, 85, b_score)]))
    late = merged((A, [(90, 98, a_score)]), (B, [(91, 99, b_score)]))
    assert early == [(76, 84, a_score)]  # 16 s to the end of A, 2 s to the start of B
    assert late == [(91, 99, b_score)]


def test_a_moment_cut_by_a_border_gives_way_to_the_whole_one():
    assert merged((A, [(90, 100, 0.9)]), (B, [(90, 130, 0.7)])) == [(90, 130, 0.7)]
    assert merged((A, [(40, 90, 0.7)]), (B, [(75, 90, 0.9)])) == [(40, 90, 0.7)]


def test_the_duplicates_of_a_moment_go_with_it():
    assert merged((A, [(76, 84, 0.9)]), (B, [(77, 85, 0.8), (75, 83, 0.3)])) == [(76, 84, 0.9)]


def test_moments_of_one_window_are_not_merged_with_each_other():
    moments = [(76, 84, 0.9), (76, 84, 0.5), (77, 85, 0.4)]
    assert merged((A, moments), (B, [(77, 85, 0.8)])) == moments


def test_different_moments_in_the_overlap_both_stay():
    assert merged((A, [(76, 84, 0.9)]), (B, [(86, 96, 0.8)])) == [(76, 84, 0.9), (86, 96, 0.8)]


def test_a_moment_without_belief_replaces_nothing():
    assert merged((A, [(76, 84, 0.1)]), (B, [(77, 85, 0.8)])) == [(77, 85, 0.8)]
    assert merged((A, [(76, 84, 0.4)]), (B, [(77, 85, 0.8)])) == [(76, 84, 0.4)]


@pytest.mark.parametrize("best", range(4))
def test_a_moment_over_many_windows_is_joined(best):
    scores = [0.6, 0.6, 0.6, 0.6]
    scores[best] = 0.9
    views = [(A, 90, 100), (B, 90, 175), (C, 150, 249.5), (D, 225, 300)]
    joined = merged(*((w, [(start, end, score)]) for (w, start, end), score in zip(views, scores)))
    # A sees only its beginning, which B sees better; B, C and D are cut at both sides of the borders between them
    assert [(start, end) for start, end, _ in joined] == [(90, 300)]
    assert joined[0][2] == pytest.approx(np.mean(scores[1:]))


def test_a_moment_that_ends_at_a_border_by_chance_is_not_joined():
    assert merged((A, [(20, 99, 0.9)]), (B, [(120, 140, 0.8)])) == [(20, 99, 0.9), (120, 140, 0.8)]


def test_a_moment_that_comes_close_to_a_border_is_joined():
    """An eighth of the overlap, 25 s, is close."""
    assert merged((A, [(20, 97.5, 0.9)]), (B, [(77.5, 140, 0.7)])) == [(20, 140, pytest.approx(0.8))]
    assert merged((A, [(20, 96, 0.9)]), (B, [(79, 140, 0.7)])) == [(20, 96, 0.9)]


def test_a_moment_within_the_overlap_is_not_joined():
    assert merged((A, [(75, 99, 0.9)]), (B, [(75, 88, 0.8)])) == [(75, 99, 0.9)]
    assert merged((A, [(60, 100, 0.9)]), (B, [(75, 99, 0.8)])) == [(60, 100, 0.9)]
    assert merged((A, [(76, 100, 0.8)]), (B, [(75, 130, 0.9)])) == [(75, 130, 0.9)]


def test_windows_may_overlap_threefold():
    first, second, third = Window(0, 16), Window(6, 22), Window(12, 28)
    views = [(first, [(12.5, 15.5, 0.7)]), (second, [(12.6, 15.6, 0.6)]), (third, [(12.4, 15.4, 0.8)])]
    assert merged(*views) == [(12.6, 15.6, 0.6)]
    assert merged(views[0], (second, []), views[2]) == [(12.5, 15.5, 0.7)]


def test_an_overlap_of_exactly_the_share_means_the_same():
    first, second = Window(0, 40), Window(24, 64)
    found = (first, [(25.25, 37.75, 0.5)]), (second, [(30.375, 40.0, 0.7)])
    assert shared_iou(found[0][1][0], found[1][1][0], first, second) == 0.5 == SAME
    assert merged(*found) == [(30.375, 40.0, 0.7)]
    assert merged((first, [(25.125, 37.75, 0.5)]), found[1]) == [(30.375, 40.0, 0.7), (25.125, 37.75, 0.5)]


spans = st.lists(
    st.tuples(st.integers(0, 319), st.integers(1, 128), st.integers(1, 99)), max_size=6, unique_by=lambda t: t[2]
)


@st.composite
def views(draw):
    """Windows of a video and random moments, of which each score occurs once.

    Times are eighths of a second, which floats hold exactly: an IoU of exactly `SAME` is one in any order of sums.
    """
    windows = split(draw(st.integers(41, 130)), 40)
    found = []
    for w, window in enumerate(windows):
        moments = []
        for start, length, score in draw(spans):
            start_s = window.start + start / 8
            moments.append((start_s, min(start_s + length / 8, float(window.stop)), score / 100 + w / 10000))
        found.append((window, moments))
    return found


@settings(max_examples=200, deadline=None)
@given(views())
def test_what_no_other_window_sees_stays_and_nothing_is_there_twice(found):
    result = merged(*found)
    owner = {score: w for w, (_, moments) in enumerate(found) for *_, score in moments}
    others = {w: [x for x, _ in found if x is not window] for w, (window, _) in enumerate(found)}
    for w, (_, moments) in enumerate(found):
        for start_s, end_s, score in moments:
            if all(end_s <= other.start or other.stop <= start_s for other in others[w]):
                assert [r for r in result if r[2] == score] == [(pytest.approx(start_s), pytest.approx(end_s), score)]
    assert [score for *_, score in result] == sorted((score for *_, score in result), reverse=True)
    whole = [r for r in result if r[2] in owner]  # the others are joined from parts
    for i, one in enumerate(whole):
        for other in whole[:i]:
            if owner[one[2]] != owner[other[2]]:
                assert shared_iou(one, other, found[owner[one[2]]][0], found[owner[other[2]]][0]) < SAME


@settings(max_examples=200, deadline=None)
@given(views())
def test_each_moment_is_one_of_the_windows_or_joined_from_them(found):
    everything = [moment for _, moments in found for moment in moments]
    for start_s, end_s, score in merged(*found):
        if not any(np.allclose((start_s, end_s, score), moment) for moment in everything):
            borders = {float(x) for window, _ in found for x in (window.start, window.stop)}
            assert any(start_s < border < end_s for border in borders)
            assert any(start_s == pytest.approx(m[0]) for m in everything)
            assert any(end_s == pytest.approx(m[1]) for m in everything)


def shared_iou(one, other, window: Window, its: Window) -> float:
    """Of two moments, of the clips that both windows see."""
    low, high = max(window.start, its.start), min(window.stop, its.stop)
    if low >= high:
        return 0.0
    (a, b), (c, d) = np.clip(one[:2], low, high), np.clip(other[:2], low, high)
    shared = max(0.0, min(b, d) - max(a, c))
    return shared / (b - a + d - c - shared) if shared else 0.0


# ---------------------------------------------------------------- saliency


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 200), st.integers(SMALLEST, 40), st.integers(0, 2**32 - 1))
def test_saliency_is_the_windows_own_outside_overlaps_and_between_them_inside(clips, size, seed):
    windows, rng = split(clips, size), np.random.default_rng(seed)
    curves = [rng.uniform(-1, 1, window.clips).astype(np.float32) for window in windows]
    curve = blend(windows, curves)
    assert (curve.shape, curve.dtype) == ((clips,), np.float32)
    for clip in range(clips):
        seen = [c[clip - w.start] for w, c in zip(windows, curves) if w.start <= clip < w.stop]
        if len(seen) == 1:
            assert curve[clip] == seen[0]
        else:
            assert min(seen) - 1e-6 <= curve[clip] <= max(seen) + 1e-6


def test_saliency_has_no_seam():
    """Two windows that disagree by 1 everywhere: the step is spread over the whole overlap."""
    curve = blend([A, B], [np.zeros(100, np.float32), np.ones(100, np.float32)])
    assert np.abs(np.diff(curve)).max() == pytest.approx(1 / 25, abs=1e-6)
    assert (curve[74], curve[100]) == (0.0, 1.0)
    assert curve[87] == pytest.approx(0.5)


def test_the_ends_of_the_video_cut_nothing():
    """At its first clips the second window is near its border, the first one is not."""
    curve = blend([Window(0, 40), Window(4, 44)], [np.zeros(40, np.float32), np.ones(40, np.float32)])
    assert curve[4] == pytest.approx(0.5 / (0.5 + 35.5))
    assert curve[39] == pytest.approx(35.5 / (0.5 + 35.5))
