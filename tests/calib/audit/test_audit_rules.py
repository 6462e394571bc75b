"""The rules of the audit on made-up measurements, and which tensors of two graphs are taken for one another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from sdst_calib.audit.compare import EXACT_DB, GraphAudit, TensorAudit, compare_graphs
from sdst_calib.audit.rules import find_faults
from sdst_calib.taps import open_graph, pieces


def tensor(key: str, snr_db: float | None, sources=(), half=True, overflow=0.0, rms=1.0) -> TensorAudit:
    place, operator = key.rsplit("/", 1)
    return TensorAudit(
        tensor=key, key=key, place=place, operator=operator.split(".")[0], half=half, sources=tuple(sources), amax=rms,
        rms=rms, overflow=overflow, subnormal=0.0, flushed=0.0, broken=0.5 if snr_db is None else 0.0, max_error=0.0,
        snr_db=snr_db,
    )  # fmt: skip


def chain(*ratios: float, outputs: bool = True) -> GraphAudit:
    """Sums of modules m0, m1, ... of these ratios, each reading the one before."""
    keys = [f"m{number}/Add.1" for number in range(len(ratios))]
    tensors = [tensor(key, ratio, keys[i - 1 : i]) for i, (key, ratio) in enumerate(zip(keys, ratios, strict=True))]
    return GraphAudit("head", 1, tuple(tensors), (), (keys[-1],) if outputs else ())


def test_a_fall_is_a_collapse_and_many_steps_are_wear():
    (collapse,) = find_faults(chain(70, 66, 34, 33))
    assert (collapse.fault, collapse.key, collapse.reason) == (
        "collapse", "m2/Add.1", "signal to noise falls from 66 to 34 dB"
    )  # fmt: skip
    (wear,) = find_faults(chain(66, 53, 40, 27, 14))
    assert (wear.fault, wear.key, wear.modules) == ("wear", "m4/Add.1", ("m2", "m3", "m4"))
    assert wear.reason == "signal to noise is 14 dB, lost little by little"
    assert find_faults(chain(66, 53, 40, 27, 14, outputs=False)) == []
    assert find_faults(chain(66, 51, 36)) == []


@pytest.mark.parametrize("operator", ["Sigmoid", "ReduceL2", "MatMul", "Div"])
def test_any_operator_may_collapse(operator):
    audit = GraphAudit("head", 1, (tensor("a/Add.1", 66), tensor(f"b/{operator}.1", 5, ["a/Add.1"])), (), ())
    assert [finding.key for finding in find_faults(audit)] == [f"b/{operator}.1"]


@pytest.mark.parametrize("operator", ["Floor", "GatherElements"])
def test_a_jump_is_none(operator):
    audit = GraphAudit("head", 1, (tensor("a/Add.1", 66), tensor(f"b/{operator}.1", 5, ["a/Add.1"])), (), ())
    assert find_faults(audit) == []


def test_what_reads_an_input_may_collapse():
    audit = GraphAudit("head", 1, (tensor("a/MatMul.1", 5, ["video"]),), (), ())
    (finding,) = find_faults(audit)
    assert finding.reason == f"signal to noise falls from {EXACT_DB:.0f} to 5 dB"


def test_overflows_between_modules_are_apart_and_name_the_makers():
    wide = {"overflow": 0.1, "snr_db": None}
    tensors = (
        tensor("a/MatMul.1", 60), tensor("b/MatMul.1", 60), tensor("c/MatMul.1", 60),
        tensor("/Add.1", sources=["a/MatMul.1", "b/MatMul.1"], **wide), tensor("d/Relu.1", None, ["/Add.1"]),
        tensor("/Add.2", sources=["c/MatMul.1"], **wide), tensor("e/Relu.1", None, ["/Add.2"]),
    )  # fmt: skip
    found = find_faults(GraphAudit("head", 1, tensors, (), ()))
    assert [(finding.key, finding.modules) for finding in found] == [
        ("/Add.1", ("a", "b", "d")), ("/Add.2", ("c", "e"))
    ]  # fmt: skip


def test_steps_of_one_module_are_one_finding_with_all_readers():
    tensors = (
        tensor("a/MatMul.1", None, overflow=0.1), tensor("b/Relu.1", None, ["a/MatMul.1"]),
        tensor("a/MatMul.2", None, overflow=0.2), tensor("c/Relu.1", None, ["a/MatMul.2"]),
    )  # fmt: skip
    (found,) = find_faults(GraphAudit("head", 1, tensors, (), ()))
    assert found.modules == ("a", "b", "c")


# ---------------------------------------------------------------- pairs


def graph(path: Path, added: bool) -> Path:
    """y = relu(x + 1 + 2) * x in modules a and b; `added` puts x + 0 before the sums of a."""
    constants = [onnx.numpy_helper.from_array(np.float32(value), f"c{value}") for value in (0, 1, 2)]
    nodes = [helper.make_node("Add", ["x", "c0"], ["zero"], "a/Add_9")] if added else []
    nodes += [
        helper.make_node("Add", ["zero" if added else "x", "c1"], ["one"], "a/Add_0"),
        helper.make_node("Add", ["one", "c2"], ["three"], "a/Add_1"),
        helper.make_node("Relu", ["three"], ["kept"], "a/Relu_2"),
        helper.make_node("Mul", ["kept", "x"], ["y"], "b/Mul_3"),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"]) for name in "xy")
    made = helper.make_graph(nodes, "g", [x], [y], constants if added else constants[1:])
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


def test_an_added_node_makes_no_neighbours_of_strangers(tmp_path):
    plain, other = (open_graph(graph(tmp_path / f"{added}.onnx", added)) for added in (False, True))
    x = [{"x": np.linspace(-4, 4, 9, dtype=np.float32)}]
    same = compare_graphs("head", plain, plain, lambda: x)
    assert [t.tensor for t in same.tensors] == ["one", "three", "kept", "y"]
    assert same.outputs == ("b/Mul.1",)
    found = compare_graphs("head", plain, other, lambda: x)
    assert found.unmatched == ("one", "three")
    assert [(t.tensor, t.snr_db) for t in found.tensors] == [("kept", EXACT_DB), ("y", EXACT_DB)]
    assert found.tensors[0].sources == ("x",)  # what the sums without a twin come from


def test_a_tensor_is_seen_piece_by_piece(monkeypatch):
    monkeypatch.setattr("sdst_calib.taps.PIECE", 4)
    x = np.arange(10.0).reshape(2, 5)
    parts = list(pieces(x, -x))
    assert [a.tolist() for a, _ in parts] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert all((a == -b).all() for a, b in parts)
