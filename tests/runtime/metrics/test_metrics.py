"""The metrics against the official result, a literal slow implementation, hand-computed cases and bad input."""

from __future__ import annotations

import copy
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import SHARED

from sdst_runtime.errors import InputError
from sdst_runtime.files import read_jsonl
from sdst_runtime.metrics.evaluator import evaluate, moment_metrics, top_clip_in_window

OFFICIAL = Path(os.environ.get("SDST_QVHIGHLIGHTS", SHARED / "data" / "qvhighlights"))
THRESHOLDS = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]


# ---------------------------------------------------------------- the same, slowly and word by word


def slow_iou(a: list[float], b: list[float]) -> float:
    shared = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    return shared / ((a[1] - a[0]) + (b[1] - b[0]) - shared)


def slow_moment_ap(predicted: list[list[float]], annotated: list[list[float]], threshold: float) -> float:
    ranked = sorted(predicted[:10], key=lambda window: -window[2])
    taken: set[int] = set()
    precision, recall = [], []
    for window in ranked:
        nearest = sorted(range(len(annotated)), key=lambda i: (slow_iou(window, annotated[i]), i), reverse=True)
        for i in nearest:
            if slow_iou(window, annotated[i]) < threshold:
                break
            if i not in taken:
                taken.add(i)
                break
        precision.append(len(taken) / (len(precision) + 1))
        recall.append(len(taken) / len(annotated))
    area, before = 0.0, 0.0
    for i in range(len(ranked)):
        area += (recall[i] - before) * max(precision[i:])
        before = recall[i]
    return area


def slow_retrieval(predictions: list[dict], annotated: dict[Any, list[list[float]]]) -> dict[str, dict[str, float]]:
    rows = [row for row in predictions if annotated[row["qid"]]]
    recall, precision = {}, {}
    for threshold in THRESHOLDS:
        aps, hits = [], []
        for row in rows:
            windows, truth = row["pred_relevant_windows"], annotated[row["qid"]]
            aps.append(slow_moment_ap(windows, truth, threshold))
            hits.append(max(slow_iou(windows[0], window) for window in truth) >= threshold)
        precision[str(threshold)], recall[str(threshold)] = 100 * float(np.mean(aps)), 100 * float(np.mean(hits))
    precision["average"] = float(np.mean(list(precision.values())))
    return {"MR-mAP": precision, "MR-R1": recall}


def slow_ranking_ap(relevant: list[bool], scores: list[float]) -> float:
    if not any(relevant):
        return 0.0
    points = []  # recall and precision when everything from a score upwards is shown
    for least in sorted(set(scores), reverse=True):
        shown = [is_relevant for is_relevant, score in zip(relevant, scores, strict=True) if score >= least]
        points.append((sum(shown), sum(shown) / len(shown)))
    values = []
    for recall in sorted({found for found, _ in points if found > 0}):
        values.append(max(precision for found, precision in points if found >= recall))
    return float(np.mean(values))


def slow_highlights(predictions: list[dict], ground_truth: dict[Any, dict], level: int) -> dict[str, float]:
    aps, hits = [], []
    for row in predictions:
        truth = ground_truth[row["qid"]]
        clips = math.ceil(truth["duration"] / 2)
        rating = dict(zip(truth["relevant_clip_ids"], truth["saliency_scores"], strict=True))
        scores = row["pred_saliency_scores"]
        top = scores.index(max(scores))
        hits.append(top < clips and max(rating.get(top, [0])) >= level)
        shown = (scores + [0.0] * clips)[:clips]
        for annotator in range(3):
            relevant = [clip in rating and rating[clip][annotator] >= level for clip in range(clips)]
            aps.append(slow_ranking_ap(relevant, shown))
    return {"HL-mAP": 100 * float(np.mean(aps)), "HL-Hit1": 100 * float(np.mean(hits))}


def slow_evaluate(predictions: list[dict], ground_truth: list[dict]) -> dict[str, Any]:
    by_qid = {row["qid"]: row for row in ground_truth}
    result: dict[str, Any] = {}
    for name, low, high in [("full", -1, 1e9), ("long", 30, 150), ("middle", 10, 30), ("short", 0, 10)]:
        kept = {q: [w for w in r["relevant_windows"] if low < w[1] - w[0] <= high] for q, r in by_qid.items()}
        result[name] = slow_retrieval(predictions, kept)
    for name, level in [("Fair", 2), ("Good", 3), ("VeryGood", 4)]:
        result[f"HL-min-{name}"] = slow_highlights(predictions, by_qid, level)
    return result


def synthetic(seed: int, queries: int = 25) -> tuple[list[dict], list[dict]]:
    """A random pair with everything that may happen: ties, few windows, overlaps, odd lengths, string qids."""
    rng = np.random.default_rng(seed)
    predictions, ground_truth = [], []
    for number in range(queries):
        qid = f"q{number}" if number % 3 == 0 else number
        duration = float(rng.choice([20, 61, 120, 150, 151.5]))
        clips = math.ceil(duration / 2)
        starts = rng.integers(0, clips - 1, rng.integers(1, 6)) * 2
        lengths = rng.choice([2, 4, 10, 12, 30, 32, 80, 160], len(starts))
        windows = [[int(start), int(start + length)] for start, length in zip(starts, lengths, strict=True)]
        ids = sorted(rng.choice(clips, rng.integers(1, clips + 1), replace=False).tolist())
        ratings = rng.integers(0, 5, (len(ids), 3)).tolist()
        if number == 1:  # every clip relevant to all
            ids, ratings = list(range(clips)), [[4, 4, 4]] * clips
        ground_truth.append(
            {
                "qid": qid,
                "duration": duration,
                "relevant_windows": windows,
                "relevant_clip_ids": ids,
                "saliency_scores": ratings,
            }
        )
        guesses = []
        for _ in range(rng.integers(1, 14)):
            start, end = np.array(windows[rng.integers(len(windows))]) + rng.choice([0, 0, 1, 2, -2, 0.37], 2)
            guesses.append([float(start), float(max(start, end)), float(rng.choice([0.1, 0.5, 0.5, rng.random()]))])
        saliency = (
            rng.choice([-1.0, 0.0, 0.0, 0.25, 0.5], clips + rng.integers(-5, 6)) + rng.choice([0, 1]) * rng.random()
        )
        saliency = np.where(rng.random(len(saliency)) < 0.5, saliency, rng.normal(size=len(saliency)))
        predictions.append({"qid": qid, "pred_relevant_windows": guesses, "pred_saliency_scores": saliency.tolist()})
    rng.shuffle(ground_truth)  # type: ignore[arg-type]
    return predictions, ground_truth


def assert_close(got: dict[str, Any], want: dict[str, Any]) -> None:
    for key, value in want.items():
        if isinstance(value, dict):
            assert list(got[key]) == list(value), key
            assert_close(got[key], value)
        else:
            assert got[key] == pytest.approx(value, abs=1e-9), key


@pytest.mark.parametrize("seed", range(20))
def test_equals_the_literal_implementation(seed: int) -> None:
    predictions, ground_truth = synthetic(seed)
    before = copy.deepcopy((predictions, ground_truth))
    got = evaluate(predictions, ground_truth, rounded=False)
    assert (predictions, ground_truth) == before
    assert_close(got, slow_evaluate(predictions, ground_truth))
    assert_close(
        evaluate(predictions, ground_truth), json.loads(json.dumps(got), parse_float=lambda x: round(float(x), 2))
    )
    by_qid = {row["qid"]: row["relevant_windows"] for row in ground_truth}
    ious = [
        [max(slow_iou(w, g) for g in by_qid[row["qid"]]) for w in row["pred_relevant_windows"]] for row in predictions
    ]
    want = {f"R{n}@{t}": 100 * np.mean([max(row[:n]) >= t for row in ious]) for n in (1, 5) for t in (0.3, 0.5, 0.7)}
    want["mIoU"] = 100 * np.mean([row[0] for row in ious])
    moments = moment_metrics(predictions, ground_truth, ranks=(1, 5), rounded=False)
    assert list(moments) == list(want)
    assert_close(moments, want)


# ---------------------------------------------------------------- the official pair

official = pytest.mark.skipif(
    not (OFFICIAL / "sample_val_preds.jsonl").is_file(),
    reason=f"QVHighlights' sample pair is not in {OFFICIAL}; SDST_QVHIGHLIGHTS names its folder",
)


@pytest.fixture(scope="module")
def official_pair() -> tuple[list[dict], list[dict], dict]:
    result = json.loads((OFFICIAL / "sample_val_preds_metrics_raw.json").read_text())
    return read_jsonl(OFFICIAL / "sample_val_preds.jsonl"), read_jsonl(OFFICIAL / "highlight_val_release.jsonl"), result


@official
def test_equals_the_official_result(official_pair: tuple) -> None:
    predictions, ground_truth, want = official_pair
    assert json.dumps(evaluate(predictions, ground_truth)) == json.dumps(want), "keys, their order and values"


@official
def test_moment_metrics_on_the_official_pair(official_pair: tuple) -> None:
    predictions, ground_truth, want = official_pair
    moments = moment_metrics(predictions, ground_truth)
    assert list(moments) == ["R1@0.3", "R1@0.5", "R1@0.7", "mIoU"]
    assert moments["R1@0.5"] == want["brief"]["MR-full-R1@0.5"]
    assert moments["R1@0.7"] == want["brief"]["MR-full-R1@0.7"]


def perturbed(pair: tuple, seed: int, queries: int = 150) -> tuple[list[dict], list[dict]]:
    """Some of the real queries, their predictions disturbed in every way that a model's may differ."""
    rng = np.random.default_rng(seed)
    by_qid = {row["qid"]: row for row in pair[1]}
    predictions = copy.deepcopy([pair[0][i] for i in rng.choice(len(pair[0]), queries, replace=False)])
    for row in predictions:
        duration_s = by_qid[row["qid"]]["duration"]
        windows = np.array(row["pred_relevant_windows"])
        jitter_s = rng.normal(scale=rng.choice([0, 0.5, 4, 30]), size=(len(windows), 2))
        windows[:, :2] = np.sort((windows[:, :2] + jitter_s).clip(0, duration_s), axis=1)
        windows[:, 1] = np.maximum(windows[:, 1], windows[:, 0] + 0.25)
        if rng.random() < 0.5:
            windows[:, 2] = rng.choice([0.1, 0.5, 0.9, *rng.random(2)], len(windows))
        kept = rng.permutation(len(windows)) if rng.random() < 0.5 else np.arange(len(windows))
        row["pred_relevant_windows"] = windows[kept[: rng.integers(1, len(windows) + 1)]].tolist()
        saliency = np.array(row["pred_saliency_scores"])
        saliency += rng.normal(scale=rng.choice([0, 0.1, 1]) * saliency.std() + 1e-9, size=len(saliency))
        row["pred_saliency_scores"] = np.round(saliency, int(rng.choice([1, 8]))).tolist()
    return predictions, [by_qid[row["qid"]] for row in predictions]


@official
@pytest.mark.parametrize("seed", range(20))
def test_perturbed_official_pair_equals_the_literal_implementation(seed: int, official_pair: tuple) -> None:
    predictions, ground_truth = perturbed(official_pair, seed)
    got = evaluate(predictions, ground_truth, rounded=False)
    assert_close(got, slow_evaluate(predictions, ground_truth))
    assert 0 < got["brief"]["MR-full-mAP"] < 100


# ---------------------------------------------------------------- by hand


def small() -> tuple[list[dict], list[dict]]:
    """Two queries of 20 s (10 clips)."""
    ground_truth = [
        {
            "qid": 1,
            "duration": 20,
            "relevant_windows": [[0, 4], [10, 20]],
            "relevant_clip_ids": [0, 1],
            "saliency_scores": [[4, 2, 0], [3, 3, 3]],
        },
        {
            "qid": 2,
            "duration": 20,
            "relevant_windows": [[4, 16]],
            "relevant_clip_ids": [5],
            "saliency_scores": [[2, 2, 1]],
        },
    ]
    predictions = [
        {
            "qid": 2,
            "pred_relevant_windows": [[0, 8, 0.2], [4, 16, 0.9]],
            "pred_saliency_scores": [0, 0, 0, 0, 0.5, 0.4, 0, 0, 0, 0],
        },
        {
            "qid": 1,
            "pred_relevant_windows": [[10, 18, 0.9], [6, 8, 0.8], [0, 4, 0.1]],
            "pred_saliency_scores": [0.9, 0.1, 0.2, 0, 0, 0, 0, 0, 0, 0],
        },
    ]
    return predictions, ground_truth


def test_by_hand() -> None:
    result = evaluate(*small())
    # Query 2: the sure window, listed second, is exact: AP 1 everywhere; the first listed has IoU 4 / 16.
    # Query 1 at 0.5: precision 1 at recall 1/2, then 2/3 at recall 1: AP 5/6. At 0.85: only [0, 4]: 1/2 * 1/3.
    assert result["full"]["MR-mAP"]["0.5"] == 91.67
    assert result["full"]["MR-mAP"]["0.85"] == 58.33
    assert result["full"]["MR-R1"]["0.8"] == 50.0
    assert result["full"]["MR-R1"]["0.85"] == 0.0
    # Short: [0, 4] and [10, 20] (10 s counts). Middle: query 2 alone. Long: none.
    assert result["short"]["MR-R1"]["0.5"] == 100.0
    assert result["middle"]["MR-mAP"]["average"] == 100.0
    assert result["long"]["MR-mAP"] == dict.fromkeys([*map(str, THRESHOLDS), "average"])
    assert result["brief"]["MR-long-mAP"] is None
    # Fair: query 1: annotators see {0, 1}, {0, 1}, {1}: (1 + 2/3) / 2 twice (clip 1 ranks third) and 1/3;
    # query 2: clip 5 ranks second for two, nothing for the third. Hit1: clip 0 yes, clip 4 no.
    assert result["HL-min-Fair"] == {
        "HL-mAP": round(100 * (5 / 6 + 5 / 6 + 1 / 3 + 1 / 2 + 1 / 2 + 0) / 6, 2),
        "HL-Hit1": 50.0,
    }
    assert result["HL-min-VeryGood"] == {"HL-mAP": round(100 / 6, 2), "HL-Hit1": 50.0}
    assert moment_metrics(*small()) == {"R1@0.3": 50.0, "R1@0.5": 50.0, "R1@0.7": 50.0, "mIoU": 52.5}
    assert moment_metrics(*small(), ranks=(5,))["R5@0.7"] == 100.0
    assert top_clip_in_window(*small()) == 100.0  # clip 4, centre 9 s, in [4, 16]; clip 0, centre 1 s, in [0, 4]
    assert top_clip_in_window(*small(), clip_s=5.0) == 50.0  # now 22.5 s and 2.5 s


def test_eleventh_window_does_not_count() -> None:
    predictions, ground_truth = small()
    predictions[1]["pred_relevant_windows"] = [[6, 8, 0.5]] * 10 + [[10, 20, 0.9]]
    assert evaluate(predictions, ground_truth)["full"]["MR-mAP"]["0.5"] == 50.0


def test_only_what_is_predicted_is_scored() -> None:
    predictions, ground_truth = small()
    moments = [{key: value for key, value in row.items() if key != "pred_saliency_scores"} for row in predictions]
    result = evaluate(moments, ground_truth)
    assert list(result) == ["brief", "full", "long", "middle", "short"]
    assert all(key.startswith("MR-") for key in result["brief"])
    assert evaluate([row | {"pred_saliency_scores": []} for row in moments], ground_truth) == result
    highlights = [{key: value for key, value in row.items() if key != "pred_relevant_windows"} for row in predictions]
    assert list(evaluate(highlights, ground_truth)) == ["brief", "HL-min-Fair", "HL-min-Good", "HL-min-VeryGood"]
    unrated = [{key: row[key] for key in ("qid", "duration", "relevant_windows")} for row in ground_truth]
    assert evaluate(predictions, unrated) == result


def test_order_of_the_annotations_is_free() -> None:
    predictions, ground_truth = synthetic(3)
    want = evaluate(predictions, ground_truth)
    assert evaluate(predictions, ground_truth[::-1]) == want


# ---------------------------------------------------------------- bad input

NAN = float("nan")
BAD_INPUT = {
    "missing qid": (lambda p, g: p.pop(), r"lack 1 of 2 qids, first 1"),
    "unknown qid": (lambda p, g: g.pop(), r"1 qids unknown to the ground truth, first 2"),
    "qid of another type": (lambda p, g: p[0].update(qid="2"), r"lack 1 of 2 qids, first 2"),
    "no qid": (lambda p, g: p[1].pop("qid"), r"predictions: row 1 needs a qid"),
    "twice predicted": (lambda p, g: p.append(p[0]), r"predictions: qid 2 occurs twice"),
    "twice annotated": (lambda p, g: g.append(g[0]), r"ground truth: qid 1 occurs twice"),
    "no rows": (lambda p, g: p.clear(), r"predictions are empty"),
    "nan window": (
        lambda p, g: p[1]["pred_relevant_windows"].append([NAN, 2, 0.1]),
        r"qid 1: .* window 3 must be three",
    ),
    "nan score": (
        lambda p, g: p[1]["pred_relevant_windows"][0].__setitem__(2, NAN),
        r"qid 1: .* window 0 must be three",
    ),
    "no score": (lambda p, g: p[1]["pred_relevant_windows"][1].pop(), r"qid 1: .* window 1 must be three"),
    "no score at all": (
        lambda p, g: [w.pop() for row in p for w in row["pred_relevant_windows"]],
        r"qid 2: .* window 0 must be three",
    ),
    "text window": (
        lambda p, g: p[1].update(pred_relevant_windows=[["0", "2", "1"]]),
        r"qid 1: .* window 0 must be three",
    ),
    "flat window": (lambda p, g: p[1].update(pred_relevant_windows=[0, 2, 1]), r"qid 1: .* window 0 must be three"),
    "no list": (lambda p, g: p[1].update(pred_relevant_windows=7), r"qid 1: pred_relevant_windows: expected a list"),
    "reversed": (
        lambda p, g: p[1].update(pred_relevant_windows=[[4, 2, 1]]),
        r"qid 1: .* window 0 ends before it starts",
    ),
    "some without": (lambda p, g: p[1].update(pred_relevant_windows=[]), r"qid 1: lacks pred_relevant_windows"),
    "empty annotation": (
        lambda p, g: g[1].update(relevant_windows=[]),
        r"ground truth qid 2: relevant_windows: expected",
    ),
    "annotation of length 0": (
        lambda p, g: g[1].update(relevant_windows=[[4, 4]]),
        r"qid 2: .* must end after it starts",
    ),
    "nan saliency": (lambda p, g: p[0]["pred_saliency_scores"].append(NAN), r"qid 2: pred_saliency_scores: expected"),
    "saliency of some": (lambda p, g: p[0].pop("pred_saliency_scores"), r"qid 2: lacks pred_saliency_scores"),
    "clip out of range": (lambda p, g: g[1].update(relevant_clip_ids=[10]), r"qid 2: .* integers from 0 to 9"),
    "half a clip": (lambda p, g: g[1].update(relevant_clip_ids=[1.5]), r"qid 2: .* integers from 0 to 9"),
    "ratings too few": (lambda p, g: g[0]["saliency_scores"].pop(), r"qid 1: .* differ in length"),
    "annotators differ": (
        lambda p, g: g[0].update(saliency_scores=[[1, 2]] * 2),
        r"qid 1: saliency_scores: expected 3",
    ),
    "no duration": (lambda p, g: g[1].pop("duration"), "qid 2: duration must be a number of seconds above 0, got None"),
    "nothing": (
        lambda p, g: [row.update(pred_relevant_windows=[], pred_saliency_scores=[]) for row in p],
        r"nothing to score",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_names_the_query(case: str) -> None:
    predictions, ground_truth = small()
    spoil, message = BAD_INPUT[case]
    spoil(predictions, ground_truth)
    with pytest.raises(InputError, match=message) as caught:
        evaluate(predictions, ground_truth)
    assert "\n" not in str(caught.value)


def test_bad_ranks() -> None:
    with pytest.raises(InputError, match="ranks must be 1 or more"):
        moment_metrics(*small(), ranks=(0,))
