"""Scores that mean a probability: the fit against planted lines, and the report against numbers by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from sdst_calib.scores.fit import fit_moments, fit_presence, logits, staircase
from sdst_calib.scores.measure import FOLDS, Answers, calibrate_scores, judge, quality
from sdst_runtime.errors import InputError

PLANTED = (0.5, -1.0)  # slope and offset


def planted(count: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Presences of a model that is twice too sure, and what is true: P(true) is the planted line of their logit."""
    rng = np.random.default_rng(seed)
    presence = expit(rng.normal(0, 3, count))
    return presence, rng.random(count) < expit(PLANTED[0] * logits(presence) + PLANTED[1])


def answers(videos: int = 40, queries: int = 20, moments: int = 4, seed: int = 1) -> Answers:
    """A third absent; moments of absent queries are wrong, of present ones right as often as their score says."""
    rng = np.random.default_rng(seed)
    count = videos * queries
    there = rng.random(count) < 2 / 3
    presence = expit(rng.normal(np.where(there, 3.0, -3.0), 2.0))
    score = rng.random((count, moments))
    right = there[:, None] & (rng.random((count, moments)) < score)
    return Answers(presence, there, score, np.where(right, 0.8, 0.2), np.arange(count) // queries)


def test_a_planted_line_is_found():
    presence, there = planted()
    line = fit_presence(presence, there)
    assert (line.slope, line.offset) == pytest.approx(PLANTED, abs=0.08)
    before, after = quality(presence, there), quality(np.array([line(p) for p in presence]), there)
    assert before.ece > 0.15 > 0.03 > after.ece
    assert after.nll < before.nll
    assert after.brier < before.brier


def test_a_planted_plane_is_found():
    rng = np.random.default_rng(3)
    score, presence = (expit(rng.normal(0, 2, 6000)) for _ in range(2))
    right = rng.random(6000) < expit(0.8 * logits(score) + 0.4 * logits(presence) - 0.5)
    line = fit_moments(score, presence, right)
    assert (line.slope, line.presence_slope, line.offset) == pytest.approx((0.8, 0.4, -0.5), abs=0.1)


def test_what_does_not_overlap_stays_finite():
    presence = np.r_[np.linspace(0.01, 0.2, 30), np.linspace(0.8, 0.99, 30)]
    line = fit_presence(presence, presence > 0.5)
    assert 0 < line.slope < 100
    assert line(0.01) < 0.1 < 0.9 < line(0.99)


def test_the_order_stays():
    """Also where the data say that a higher score is less likely: then the slope is the least that is allowed."""
    presence, there = planted(300)
    for line in (fit_presence(presence, there), fit_presence(presence, ~there)):
        found = [line(p) for p in np.sort(presence)]
        assert found == sorted(found)
        assert line.slope > 0


def test_one_kind_only_is_refused():
    with pytest.raises(InputError, match="queries that are present and absent, got 3 and 0"):
        fit_presence(np.array([0.1, 0.2, 0.3]), np.ones(3, bool))


def test_the_staircase_rises_and_fits():
    presence, there = planted(2000)
    found = staircase(presence, there)(np.sort(presence))
    assert (np.diff(found) >= 0).all()
    assert quality(staircase(presence, there)(presence), there).ece < 0.02


def test_the_report_is_of_queries_that_the_fit_did_not_see():
    asked = answers()
    report = judge(asked, asked)
    expected = np.zeros(len(asked.there_N))
    for fold in range(FOLDS):
        own = asked.video_N % FOLDS == fold
        line = fit_presence(asked.presence_N[~own], asked.there_N[~own])
        expected[own] = [line(p) for p in asked.presence_N[own]]
    assert report.presence["line"] == quality(expected, asked.there_N)
    kept = calibrate_scores(asked).presence
    assert report.presence["line"] != quality(np.array([kept(p) for p in asked.presence_N]), asked.there_N)
    assert report.moments["line"].ece < report.moments["as it is"].ece
    assert report.presence["line"].ece < 0.05
    assert (report.queries, report.absent) == (800, int((~asked.there_N).sum()))


def test_thresholds_trade_recall_for_refusals():
    rows = judge(answers(), answers(seed=2)).thresholds
    recall, refused = ([row[name] for row in rows] for name in ("recall", "refused"))
    assert recall == sorted(recall, reverse=True)
    assert refused == sorted(refused)
    assert max(row["R1@0.5 with absent"] for row in rows) <= 100


def test_quality_by_hand():
    found = quality(np.array([0.25, 0.25, 0.75, 0.75]), np.array([False, True, True, True]))
    assert found.ece == pytest.approx(0.5 * 0.25 + 0.5 * 0.25)
    assert found.brier == pytest.approx((0.0625 + 0.5625 + 0.0625 + 0.0625) / 4)
    assert found.nll == pytest.approx(-(3 * np.log(0.75) + np.log(0.25)) / 4)
    assert found.bins == [(0.5, 0.25, 0.5), (0.5, 0.75, 1.0)]
