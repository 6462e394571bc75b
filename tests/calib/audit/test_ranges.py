"""Ranges of tensors: the histogram's bins, what is counted, and what data is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sdst_calib.audit.ranges import BINS, RangeCounter, TensorRange, bin_edges, calibrate, read_ranges, write_ranges
from sdst_calib.taps import GROUP_VALUES, open_graph, run_tapped
from sdst_runtime.errors import ContractError, InputError
from sdst_runtime.files import write_text

IDENTITY = ("head", "a" * 64, "b" * 64)


def counted(*arrays: np.ndarray) -> TensorRange:
    counter = RangeCounter()
    for array in arrays:
        counter.add(array)
    return counter.result("here", "MatMul")


@pytest.fixture(scope="module")
def feeds():
    rng = np.random.default_rng(3)
    queries = [
        {
            "projected": rng.standard_normal((1, T, 2, 32)).astype(np.float32),
            "video_mask": np.ones((1, T), bool),
            "text": rng.standard_normal((1, 2, L, 16)).astype(np.float32),
            "text_mask": np.ones((1, L), bool),
        }
        for T, L in ((21, 6), (9, 3), (2, 1))
    ]
    return lambda: iter(queries)


def changed(feeds, value: float):
    """The same queries with `value` in every float input."""
    return lambda: ({n: np.full_like(a, value) if a.dtype == np.float32 else a for n, a in q.items()} for q in feeds())


@pytest.fixture(scope="module")
def ranges(exported, feeds):
    return calibrate(open_graph(exported.directory / "head.onnx"), feeds, IDENTITY)


def test_edges_are_those_of_float32():
    edges = bin_edges()
    assert len(edges) == BINS + 1
    assert (np.diff(edges[: BINS - 15]) > 0).all()
    one = np.searchsorted(edges, 1.0)
    assert edges[one : one + 17].tolist() == [1 + i / 16 for i in range(17)]
    assert edges[BINS - 16] == 2.0**128


def test_every_value_falls_between_its_edges():
    """Against numpy's own histogram over the same edges, over 60 orders of magnitude."""
    rng = np.random.default_rng(0)
    values = (rng.standard_normal(5000) * 10.0 ** rng.uniform(-30, 30, 5000)).astype(np.float32)
    values[:3] = 0, 1, -65504
    result = counted(values[:1000], values[1000:].reshape(50, 80))
    expected, _ = np.histogram(np.abs(values.astype(np.float64)), result.edges())
    assert list(result.counts) == expected.tolist()
    assert result.values == sum(result.counts) == 5000


def test_extremes_and_mean_square():
    values = np.array([-3.0, 0.5, 2.0, 0.0], np.float32)
    result = counted(values[:1], values[1:])
    assert (result.min, result.max, result.amax) == (-3.0, 2.0, 3.0)
    assert result.mean_square == pytest.approx((9 + 0.25 + 4) / 4)


def test_nan_and_infinity_are_counted_and_left_out():
    result = counted(np.array([1.0, np.nan, np.inf, -np.inf, -2.0, np.nan], np.float32))
    assert (result.values, result.nan, result.inf, sum(result.counts)) == (6, 2, 2, 2)
    assert (result.min, result.max, result.mean_square) == (-2.0, 1.0, 2.5)
    nothing = counted(np.full(3, np.nan, np.float16))
    assert (nothing.values, nothing.nan, nothing.amax, nothing.counts) == (3, 3, 0.0, ())


def test_halves_are_counted_as_floats():
    values = np.array([6.1e-5, 1.0, -65504.0, 5.96e-8], np.float16)
    assert counted(values) == counted(values.astype(np.float32))


def test_every_float_tensor_has_its_range(exported, feeds, ranges):
    graph = open_graph(exported.directory / "head.onnx")
    assert list(ranges.tensors) == ["projected", "text", *(tap.tensor for tap in graph.taps)]
    assert {"spans", "scores", "saliency"} <= ranges.tensors.keys()
    assert ranges.feeds == 3
    steps = [tensor for tensor in ranges.tensors.values() if tensor.operator == "RDSA"]
    assert len(steps) == 2
    assert {tensor.place for tensor in steps} == {"sparse.sample"}
    names = ["scores", next(tap.tensor for tap in graph.taps if tap.place == "dense.ffn.0")]
    values = list(run_tapped(graph, names, feeds()))
    for name in names:
        all_values = np.concatenate([v[name].ravel() for v in values])
        found = ranges.tensors[name]
        assert (found.values, found.min, found.max) == (all_values.size, all_values.min(), all_values.max())


def test_groups_change_nothing(exported, feeds, ranges, monkeypatch):
    monkeypatch.setattr("sdst_calib.taps.groups.__defaults__", (37, GROUP_VALUES))
    heard = []
    again = calibrate(
        open_graph(exported.directory / "head.onnx"), feeds, IDENTITY, lambda done, total: heard.append((done, total))
    )
    assert again == ranges
    assert len(heard) == heard[-1][1] > 5


def test_a_file_is_read_back(ranges, tmp_path):
    write_ranges(tmp_path / "head.json", ranges)
    assert read_ranges(tmp_path / "head.json") == ranges


def test_a_file_that_does_not_parse_is_named(ranges, tmp_path):
    path = tmp_path / "head.json"
    write_ranges(path, ranges)
    told = json.loads(path.read_text())
    for change, expected in (({"feeds": "3"}, "feeds"), ({"more": 1}, "more"), ({"format": 7}, "format 7")):
        write_text(path, json.dumps(told | change))
        with pytest.raises(ContractError, match=expected):
            read_ranges(path)
    with pytest.raises(InputError, match="sdst calibrate ranges"):
        read_ranges(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.nan, r"input 'projected' holds 2048 NaN and 0 infinite values of 2048"),
        (np.inf, r"input 'projected' holds 0 NaN and 2048 infinite"),
        (0.25, r"input 'projected' is 0\.25 everywhere"),
    ],
)
def test_data_that_tells_nothing_is_refused(exported, feeds, value, expected):
    with pytest.raises(InputError, match=expected):
        calibrate(open_graph(exported.directory / "head.onnx"), changed(feeds, value), IDENTITY)


def test_no_data_is_refused(exported):
    with pytest.raises(InputError, match="expected at least one query, got none"):
        calibrate(open_graph(exported.directory / "head.onnx"), lambda: iter(()), IDENTITY)


def test_a_file_that_is_no_graph_is_refused(tmp_path):
    path: Path = tmp_path / "head.onnx"
    path.write_bytes(b"no graph")
    with pytest.raises(InputError, match=r"head\.onnx: cannot read it as ONNX"):
        open_graph(path)
