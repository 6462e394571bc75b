"""The numbers of each level of parity against their definitions, and Polygraphy's runners around our sessions."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from engine_files import engine_inputs, engine_oracle, opened, write_engine
from mocked_tensorrt import BINDINGS, MockedTensorRT, mocked_tensorrt
from tiny_world import CLIP_S, make_samples

from sdst_calib.parity.decisions import Answer, decisions
from sdst_calib.parity.runners import RegisterPlugin, SessionRunner, compare, outputs_of, run_runners
from sdst_calib.parity.task import metrics, metrics_by_query
from sdst_calib.parity.tolerances import Check, Tolerances, checks
from sdst_calib.tensor_errors import TensorSums
from sdst_runtime.contracts import Grounding, Moment
from sdst_runtime.data.config import DataConfig
from sdst_runtime.errors import DependencyError, InputError
from sdst_runtime.metrics.score import score
from sdst_runtime.sessions.base import TensorInfo


class Fixed:
    """A session of one output that answers what it was told."""

    metadata: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, answer: np.ndarray) -> None:
        self.answer = answer
        self.inputs = {"x": TensorInfo(np.dtype(np.float32), ("B",))}
        self.outputs = {"y": TensorInfo(answer.dtype, answer.shape)}

    def run(self, inputs):
        return {"y": self.answer}

    def close(self) -> None: ...

    def __enter__(self):
        return self

    def __exit__(self, *exception) -> None: ...


# ---------------------------------------------------------------- tensor


def test_sums_over_batches_are_those_of_all_values():
    rng = np.random.default_rng(0)
    x = rng.normal(size=1000)
    y = x + 0.1 * rng.normal(size=1000)
    sums = TensorSums()
    for part in range(4):
        sums.add(x[part::4], y[part::4])
    error = sums.error()
    assert error.max_abs == np.abs(x - y).max()
    assert error.mean_abs == pytest.approx(np.abs(x - y).mean())
    assert error.cosine == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
    assert error.snr_db == pytest.approx(10 * math.log10((x @ x) / ((x - y) @ (x - y))))
    assert 19 < error.snr_db < 21


def test_what_is_not_finite_is_counted_and_left_out():
    sums = TensorSums()
    sums.add(np.array([1.0, np.inf, -np.inf, 2.0, 3.0]), np.array([1.0, np.inf, np.inf, np.nan, 2.0]))
    error = sums.error()
    assert (error.values, error.not_finite, error.max_abs) == (2, 2, 1.0)
    sums = TensorSums()
    sums.add(np.array([np.nan]), np.array([1.0]))
    assert math.isnan(sums.error().snr_db)


def test_polygraphys_errors_are_relative_to_the_reference():
    runners = [SessionRunner(Fixed(np.array(y, np.float32)), n) for n, y in (("a", [1, 2]), ("b", [1.5, 2]))]
    results = run_runners(runners, {"x": np.zeros(2, np.float32)})
    error = compare(results, ["a", "b"])["b"]["y"]
    assert (error.max_abs, error.mean_abs, error.max_rel, error.mean_rel) == (0.5, 0.25, 0.5, 0.25)
    assert compare(results, ["b", "a"])["a"]["y"].max_rel == pytest.approx(1 / 3)


def test_outputs_of_other_shapes_are_refused():
    runners = [SessionRunner(Fixed(np.zeros(n, np.float32)), str(n)) for n in (2, 3)]
    results = run_runners(runners, {"x": np.zeros(2, np.float32)})
    with pytest.raises(InputError, match=r"3: expected the outputs of 2.*\(2,\).*got.*\(3,\)"):
        compare(results, ["2", "3"])


def in_process_runner(plan: str) -> dict:
    session, _ = opened(plan)
    inputs = engine_inputs(2, 8, 5)
    results = run_runners([SessionRunner(session, "engine")], inputs)
    apart = np.abs(outputs_of(results, "engine")["out"] - engine_oracle(inputs)).max()
    session.close()
    return {"apart": float(apart)}


def test_a_tensorrt_session_is_a_runner_too(tmp_path):
    tensorrt: MockedTensorRT = mocked_tensorrt(BINDINGS[0])
    plan = write_engine(tmp_path, tensorrt.bindings.version, tensorrt.plugin)
    assert tensorrt.call(in_process_runner, str(plan))["apart"] < 2e-5


def test_the_loader_of_the_plugin_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # so that the test is the same where TensorRT is installed
    with pytest.raises(DependencyError, match="tensorrt"):
        RegisterPlugin(lambda: "engine")()


# ---------------------------------------------------------------- decision


def answer(scores: list[float], start_s: float, saliency: list[float]) -> Answer:
    best = max(scores)
    grounding = Grounding("q", (Moment(start_s, start_s + 10, best),), np.array(saliency, np.float32), 2.0)
    return Answer(grounding, np.array(scores))


def test_decisions_of_two_queries():
    reference = [answer([0.9, 0.5, 0.1], 0, [0, 1, 0]), answer([0.2, 0.8, 0.1], 20, [3, 1, 2])]
    other = [answer([0.9, 0.4, 0.2], 0, [0, 2, 1]), answer([0.8, 0.2, 0.1], 25, [1, 2, 3])]
    found = decisions(reference, other)
    assert found.top_iou == pytest.approx((1 + 5 / 15) / 2)
    assert found.worst_top_iou == pytest.approx(5 / 15)
    assert (found.same_top, found.top_clip, found.first_kept) == (0.5, 0.5, 1.0)
    assert found.rank == pytest.approx((1 + 1 / 3) / 2)


def test_scores_that_nobody_tells_apart_are_one():
    reference, other = answer([0.9, 1e-20, 1e-30], 0, [1]), answer([0.9, 2e-8, 3e-8], 0, [1])
    assert decisions([reference], [other]).rank == pytest.approx(1)


def test_scores_that_are_all_one_agree_with_their_like_only():
    flat, told = answer([0.5, 0.5], 0, [1]), answer([0.9, 0.5], 0, [1])
    assert decisions([flat], [flat]).rank == 1
    assert decisions([told], [flat]).rank == 0


# ---------------------------------------------------------------- task


def predictions(samples, seed: int) -> list[dict]:
    rng = np.random.default_rng(seed)
    rows = []
    for sample in samples:
        windows = [[max(0.0, s + rng.normal()), e + rng.normal(), float(rng.uniform())] for s, e in
                   sample.row["relevant_windows"]]  # fmt: skip
        saliency = (sample.saliency + rng.normal(size=len(sample.saliency))).tolist()
        rows.append({k: sample.row[k] for k in ("qid", "query", "vid")}
                    | {"pred_relevant_windows": windows, "pred_saliency_scores": saliency})  # fmt: skip
    return rows


@pytest.mark.parametrize("kind", ["qvhighlights", "moments"])
def test_means_over_queries_are_the_official_metrics(kind):
    samples, data = make_samples(30), DataConfig(clip_s=CLIP_S, metrics=kind)
    rows = predictions(samples, 1)
    brief = score(rows, samples, data, rounded=False)["brief"]
    by_query = metrics_by_query(rows, samples, data)
    assert {"moments": "mIoU", "qvhighlights": "MR-full-mAP"}[kind] in by_query
    for name, values in by_query.items():
        assert values.mean() == pytest.approx(brief[name])


def test_intervals_are_those_of_the_mean_and_differences_are_paired():
    rng = np.random.default_rng(0)
    hard = rng.normal(50, 20, 400)
    other = hard - 1 + 0.1 * rng.normal(size=400)
    (found,) = metrics({"m": hard}, {"m": other})
    spread = 1.96 * other.std() / math.sqrt(len(other))
    assert found.value.value == pytest.approx(other.mean())
    assert found.value.high - found.value.low == pytest.approx(2 * spread, rel=0.1)
    assert found.difference.value == pytest.approx(-1, abs=0.02)
    assert -1.03 < found.difference.low < found.difference.high < -0.97
    (same,) = metrics({"m": hard}, {"m": hard})
    assert (same.difference.low, same.difference.high) == (0, 0)


# ---------------------------------------------------------------- limits


def test_checks_hold_what_is_stated_and_nothing_else():
    found = decisions([answer([0.9, 0.5], 0, [1])], [answer([0.9, 0.5], 5, [1])])
    assert checks(Tolerances(top_iou=0.5), "moments", {}, found, []) == [
        Check("decision", "top_iou", pytest.approx(5 / 15), 0.5, False)
    ]
    assert checks(Tolerances(), "moments", {}, found, []) == []
