"""Presence: AUROC against every pair, calibration error and answering by hand, and metrics with absent queries."""

from __future__ import annotations

import numpy as np
import pytest

from sdst_runtime.data.config import DataConfig
from sdst_runtime.data.dataset import Sample
from sdst_runtime.errors import InputError
from sdst_runtime.metrics.evaluator import evaluate, moment_metrics
from sdst_runtime.metrics.presence import (
    answering,
    auroc,
    expected_calibration_error,
    presence_metrics,
    reliability,
)
from sdst_runtime.metrics.score import by_windows, metric_names, present, score

MOMENTS = DataConfig(metrics="moments")


def truth_of(qid: int, *windows: tuple[float, float]) -> dict:
    """Without windows the query is absent."""
    row = {"qid": qid, "query": "q", "vid": f"v{qid}", "duration": 20.0, "relevant_windows": [list(w) for w in windows]}
    return row if windows else row | {"absent": True}


def prediction_of(qid: int, presence: float | None, *windows: tuple[float, float]) -> dict:
    listed = [[start, end, 0.9 - 0.1 * i] for i, (start, end) in enumerate(windows or ((0, 2),))]
    row = {"qid": qid, "query": "q", "vid": f"v{qid}", "pred_relevant_windows": listed, "pred_saliency_scores": [0.5]}
    return row if presence is None else row | {"pred_presence": presence}


def samples_of(truth: list[dict]) -> list[Sample]:
    nothing = np.zeros((10, 1, 1), np.float32)
    return [Sample(row, nothing, nothing, np.zeros((0, 2)), np.zeros(10)) for row in truth]


# Present: IoU 0.6, IoU 1, a miss, and IoU 1 that is not answered. Absent: a false alarm and a refusal.
TRUTH = [truth_of(0, (0, 10)), truth_of(1, (2, 4)), truth_of(2, (2, 4)), truth_of(3, (2, 4)), truth_of(4), truth_of(5)]
PREDICTED = [
    prediction_of(0, 0.9, (0, 6)), prediction_of(1, 0.8, (2, 4)), prediction_of(2, 0.5, (10, 12)),
    prediction_of(3, 0.3, (2, 4)), prediction_of(4, 0.6), prediction_of(5, 0.1),
]  # fmt: skip


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize("seed", range(6))
def test_auroc_is_the_share_of_pairs_in_order(seed):
    rng = np.random.default_rng(seed)
    score_N = rng.integers(0, 6, 40) / 5 if seed % 2 else rng.random(40)  # of six values: full of ties
    true_N = rng.random(40) < 0.4
    pairs = [(p > n) + (p == n) / 2 for p in score_N[true_N] for n in score_N[~true_N]]
    assert auroc(score_N, true_N) == pytest.approx(np.mean(pairs), abs=1e-12)


def test_auroc_of_order_and_of_none():
    there = np.array([False, False, True, True])
    assert auroc(np.array([0.1, 0.2, 0.3, 0.4]), there) == 1
    assert auroc(np.array([0.4, 0.3, 0.2, 0.1]), there) == 0
    assert auroc(np.full(4, 0.5), there) == 0.5


def test_calibration_error_by_hand():
    said = np.array([0.0, 0.05, 0.25, 0.95, 1.0, 0.3])  # bins 0, 0, 2, 9, 9, 3: borders belong to the upper one
    true = np.array([False, True, True, True, True, False])
    assert reliability(said, true) == [
        (pytest.approx(2 / 6), pytest.approx(0.025), 0.5), (pytest.approx(1 / 6), 0.25, 1.0),
        (pytest.approx(1 / 6), 0.3, 0.0), (pytest.approx(2 / 6), pytest.approx(0.975), 1.0),
    ]  # fmt: skip
    expected = 2 / 6 * 0.475 + 1 / 6 * 0.75 + 1 / 6 * 0.3 + 2 / 6 * 0.025
    assert expected_calibration_error(said, true) == pytest.approx(expected)
    assert expected_calibration_error(said, true, bins=1) == pytest.approx(abs(said.mean() - 4 / 6))
    assert expected_calibration_error(np.array([0.0, 1.0]), np.array([False, True])) == 0


def test_answering_by_hand():
    presence, there = np.array([0.9, 0.5, 0.4, 0.6, 0.2]), np.array([True, True, True, False, False])
    assert answering(presence, there, 0.5) == {
        "precision": pytest.approx(100 * 2 / 3), "recall": pytest.approx(100 * 2 / 3), "refused": 50,
    }  # fmt: skip
    assert answering(presence, there, 0.95) == {"precision": 100, "recall": 0, "refused": 100}
    assert answering(presence, there, 0.0) == {"precision": 60, "recall": 100, "refused": 0}


# ---------------------------------------------------------------- with absent queries


def test_a_false_alarm_counts():
    found = presence_metrics(PREDICTED, TRUTH, [0.6, 1.0, 0.0, 1.0])
    assert found == {
        "queries": 6, "absent": 2, "AUROC": pytest.approx(6 / 8),
        "ECE": pytest.approx((0.1 + 0.2 + 0.5 + 0.7 + 0.6 + 0.1) / 6), "threshold": 0.5, "precision": 75.0,
        "recall": 75.0, "refused": 50.0, "R1@0.5 with absent": pytest.approx(100 * 3 / 6),
        "R1@0.7 with absent": pytest.approx(100 * 2 / 6),
    }  # fmt: skip
    everything = presence_metrics(PREDICTED, TRUTH, [0.6, 1.0, 0.0, 1.0], threshold=0.0)
    assert everything["R1@0.5 with absent"] == pytest.approx(100 * 3 / 6)  # both absent ones are false alarms now
    assert (everything["recall"], everything["refused"]) == (100, 0)


@pytest.mark.parametrize("order", [list(range(6)), [5, 2, 0, 4, 3, 1]])
def test_metrics_of_the_present_stay_and_presence_comes_besides(order):
    rows = [PREDICTED[i] for i in order]
    result = score(rows, samples_of(TRUTH), MOMENTS, rounded=False)
    assert result["presence"]["R1@0.7 with absent"] == pytest.approx(100 * 2 / 6)
    assert result["presence"]["AUROC"] == pytest.approx(6 / 8)
    assert result["brief"].pop("presence-AUROC") == pytest.approx(75)
    there = [PREDICTED[i] for i in order if i < 4]
    assert result["brief"] == moment_metrics(there, TRUTH[:4], rounded=False)
    official = score(rows, samples_of(TRUTH), DataConfig())
    assert official["full"] == evaluate(there, TRUTH[:4])["full"]


def test_without_a_presence_the_present_are_measured():
    rows = [{name: value for name, value in row.items() if name != "pred_presence"} for row in PREDICTED]
    result = score(rows, samples_of(TRUTH), MOMENTS)
    assert result == {"brief": moment_metrics(rows[:4], TRUTH[:4])}


def test_nothing_is_filtered_where_nothing_is_absent():
    assert present(PREDICTED[:4], TRUTH[:4]) == (PREDICTED[:4], TRUTH[:4])
    assert score(PREDICTED[:4], samples_of(TRUTH[:4]), MOMENTS) == {"brief": moment_metrics(PREDICTED[:4], TRUTH[:4])}


@pytest.mark.parametrize("value", [None, "high", -0.1, 1.5, float("nan")])
def test_the_query_without_a_presence_is_named(value):
    rows = [*PREDICTED[:3], PREDICTED[3] | {"pred_presence": value}, *PREDICTED[4:]]
    with pytest.raises(
        InputError, match=r"^prediction qid 3: expected pred_presence of 0 to 1, got .*--data.negatives"
    ):
        score(rows, samples_of(TRUTH), MOMENTS)


def test_other_faults_are_named():
    with pytest.raises(InputError, match="predictions lack 1 of 6 qids, first 5"):
        score(PREDICTED[:5], samples_of(TRUTH), MOMENTS)
    with pytest.raises(InputError, match="all 2 queries are absent, no moment to score"):
        score(PREDICTED[4:], samples_of(TRUTH[4:]), MOMENTS)
    with pytest.raises(InputError, match="expected present and absent queries, got one kind only"):
        presence_metrics(PREDICTED[:4], TRUTH[:4], [1.0] * 4)


def test_names_of_metrics_of_a_split_with_absent_queries():
    bare = {name: value for name, value in TRUTH[4].items() if name != "relevant_windows"}
    samples = samples_of([*TRUTH[:4], bare])
    assert metric_names(samples, MOMENTS) == ["R1@0.3", "R1@0.5", "R1@0.7", "mIoU", "presence-AUROC"]
    assert metric_names(samples[:4], MOMENTS) == ["R1@0.3", "R1@0.5", "R1@0.7", "mIoU"]


# ---------------------------------------------------------------- by number of windows


def test_by_number_of_windows():
    truth = [truth_of(0, (0, 4)), truth_of(1, (0, 4), (10, 14)), truth_of(2, (0, 2), (4, 6), (8, 10), (12, 14))]
    rows = [
        prediction_of(0, None, (10, 14), (0, 4)),  # the right one is second
        prediction_of(1, None, (0, 4)),  # one of two
        prediction_of(2, None, (0, 2), (4, 6), (8, 10), (12, 14)),
    ]
    groups = by_windows(rows, truth)
    assert list(groups) == ["1", "2", "3 or more"]
    assert groups["1"] == {"queries": 1, "mAP": pytest.approx(50), "R1@0.5": 0, "R1@0.7": 0}
    assert groups["2"] == {"queries": 1, "mAP": pytest.approx(50), "R1@0.5": 100, "R1@0.7": 100}
    assert groups["3 or more"] == {"queries": 1, "mAP": pytest.approx(100), "R1@0.5": 100, "R1@0.7": 100}
    assert list(by_windows([rows[0], rows[2]], [truth[0], truth[2]])) == ["1", "3 or more"]
    assert by_windows(rows[:1], truth[:1]) == {}
    assert score(rows, samples_of(truth), MOMENTS)["by_windows"] == groups
