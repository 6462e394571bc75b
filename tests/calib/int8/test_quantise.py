"""Q/DQ around the right nodes of a graph, and the search for the layers that int8 hurts."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from int8_codes import dequantise
from onnx import TensorProto, helper, numpy_helper

from sdst_calib.int8.quantise import default_kept, find_products, quantise_model, within
from sdst_calib.int8.sensitivity import Measured, rank_layers, search_within
from sdst_export.engine.onnx_source import model_for_parser
from sdst_export.rdsa_op import rdsa_nodes
from sdst_runtime.errors import ContractError, InputError
from sdst_runtime.sessions.onnxruntime import OnnxRuntimeSession


def small_graph(dtype: type = np.float32) -> onnx.ModelProto:
    """x B 6 8 8 through a Conv of 6 -> 4, a MatMul 8 -> 5, two Gemms, and a product of activations."""
    rng = np.random.default_rng(3)
    kind = TensorProto.FLOAT if dtype == np.float32 else TensorProto.FLOAT16
    weights = {"c": (4, 6, 3, 3), "m": (8, 5), "g": (7, 5), "h": (7, 3), "t": (5, 5)}
    arrays = {name: (rng.standard_normal(shape) * np.arange(1, shape[0] + 1).reshape(-1, *[1] * (len(shape) - 1)))
              for name, shape in weights.items()}  # fmt: skip
    arrays = {name: (array / np.abs(array).max()).astype(dtype) for name, array in arrays.items()}
    nodes = [
        helper.make_node("Conv", ["x", "c"], ["conv"], "stem/Conv_0", pads=[1, 1, 1, 1]),
        helper.make_node("MatMul", ["conv", "m"], ["line"], "a.b/MatMul_1"),
        helper.make_node("Reshape", ["line", "rows"], ["flat"], "a/Reshape_2"),
        helper.make_node("Gemm", ["flat", "g"], ["gemm_t"], "a.t/Gemm_3", transB=1),
        helper.make_node("Gemm", ["gemm_t", "h"], ["gemm"], "a.n/Gemm_4"),
        helper.make_node("Transpose", ["t"], ["turned"], "a.u/Transpose_5", perm=[1, 0]),
        helper.make_node("MatMul", ["flat", "turned"], ["twice"], "a.u/MatMul_6"),
        helper.make_node("Transpose", ["twice"], ["columns"], "a/Transpose_7", perm=[1, 0]),
        helper.make_node("MatMul", ["columns", "gemm"], ["y"], "a/MatMul_8"),
    ]
    initializers = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    initializers.append(numpy_helper.from_array(np.array([-1, 5], np.int64), "rows"))
    graph = helper.make_graph(
        nodes, "small",
        [helper.make_tensor_value_info("x", kind, ["B", 6, 8, 8])], [helper.make_tensor_value_info("y", kind, [5, 3])],
        initializers,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    helper.set_model_props(model, {"sdst.kind": "small"})
    return onnx.shape_inference.infer_shapes(model)


SCALES = {"x": 0.03, "conv": 0.1, "flat": 0.2, "gemm_t": 0.5}


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """Unfused: every product of floats."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    output: Any = session.run(None, {"x": x})[0]
    return output


def nodes_by_name(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {node.name: node for node in model.graph.node}


def test_products_and_their_output_channels():
    found = [(p.layer, p.activation, p.weight, p.axis) for p in find_products(small_graph())]
    assert found == [
        ("stem", "x", "c", 0), ("a.b", "conv", "m", 1), ("a.t", "flat", "g", 0), ("a.n", "gemm_t", "h", 1),
        ("a.u", "flat", "turned", 1),
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_graph_computes_what_its_codes_say(dtype, tmp_path):
    """ONNX Runtime, unfused, against numpy on the codes and scales that the file holds."""
    model = small_graph(dtype)
    quantised = quantise_model(model, {"stem", "a.b", "a.t", "a.n", "a.u"}, SCALES).model
    onnx.checker.check_model(quantised, full_check=True)
    held = {t.name: numpy_helper.to_array(t) for t in quantised.graph.initializer}
    original = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    assert not {"c", "m", "g", "h", "t"} & held.keys()
    for name, axis, source in (("c", 0, "c"), ("m", 1, "m"), ("g", 0, "g"), ("h", 1, "h"), ("turned", 1, "t")):
        weight = original[source].T if source == "t" else original[source]
        scale, zero, codes = held[f"{name}/scale"], held[f"{name}/zero"], held[f"{name}/int8"]
        assert scale.dtype == dtype
        assert zero.dtype == codes.dtype == np.int8
        assert scale.shape == zero.shape == (weight.shape[axis],)
        assert not zero.any()
        largest = np.abs(weight.astype(np.float64)).max(axis=tuple(i for i in range(weight.ndim) if i != axis))
        assert scale.astype(np.float64) == pytest.approx(largest / 127, rel=1e-3)
        restored = dequantise(codes, scale, axis).astype(np.float64)
        assert np.abs(restored - weight).max() <= largest.max() / 127 * 0.51
    x = np.random.default_rng(1).standard_normal((2, 6, 8, 8)).astype(dtype)
    exact, got = run(model, x).astype(np.float64), run(quantised, x).astype(np.float64)
    error = np.linalg.norm(got - exact) / np.linalg.norm(exact)
    assert 1e-4 < error < 0.03
    if dtype == np.float32:  # as our session runs it: with int8 kernels where they are exact on this processor
        onnx.save(quantised, tmp_path / "int8.onnx")
        with OnnxRuntimeSession(tmp_path / "int8.onnx", 1, "cpu", as_written=True) as session:
            assert np.linalg.norm(session.run({"x": x})["y"] - got) / np.linalg.norm(got) < 0.005


def test_each_product_has_its_pair_and_shares_the_scale():
    model = small_graph()
    quantised = quantise_model(model, {"a.t", "a.u"}, SCALES)
    kinds = [node.op_type for node in quantised.model.graph.node]
    assert kinds.count("QuantizeLinear") == 2
    assert kinds.count("DequantizeLinear") == 4
    named = nodes_by_name(quantised.model)
    for product in ("a.t/Gemm_3", "a.u/MatMul_6"):
        assert named[product].input[0] == f"{product}_from_int8"
        assert list(named[f"{product}_QuantizeLinear"].input) == ["flat", "flat/scale", "flat/zero"]
    assert list(named["a.b/MatMul_1"].input) == ["conv", "m"]
    assert list(named["a/MatMul_8"].input) == ["columns", "gemm"]
    assert quantised.activations == {"flat": pytest.approx(0.2)}
    assert quantised.weights["g"].axis == 0
    assert quantised.weights["g"].channels == 7
    assert {e.key: e.value for e in quantised.model.metadata_props} == {"sdst.kind": "small"}


def test_tensorrt_gets_one_pair_an_activation(tmp_path):
    """A pair a product is for ONNX Runtime; the weights keep a DequantizeLinear each, and the numbers stay."""
    x = np.random.default_rng(1).standard_normal((2, 6, 8, 8)).astype(np.float32)
    quantised = quantise_model(small_graph(), {"a.t", "a.u"}, SCALES).model
    onnx.save(quantised, tmp_path / "int8.onnx")
    given = onnx.load_from_string(model_for_parser(tmp_path / "int8.onnx"))
    kinds = [node.op_type for node in given.graph.node]
    assert (kinds.count("QuantizeLinear"), kinds.count("DequantizeLinear")) == (1, 3)
    named = nodes_by_name(given)
    assert named["a.t/Gemm_3"].input[0] == named["a.u/MatMul_6"].input[0]
    np.testing.assert_array_equal(run(given, x), run(quantised, x))


def test_what_a_graph_cannot_give():
    model = small_graph()
    with pytest.raises(InputError, match=r"a\.b: no scale for conv"):
        quantise_model(model, {"a.b"}, {})
    quantised = quantise_model(model, {"a.b"}, SCALES).model
    with pytest.raises(ContractError, match=r"holds QuantizeLinear already"):
        find_products(quantised)


def test_modules_by_name():
    model, other = small_graph(), small_graph()
    other.graph.node[0].name = "trunk.stem/Conv_0"
    other.graph.node[2].name = "/Reshape_2"  # outside all modules
    assert within([model], ["a"]) == {"a", "a.b", "a.t", "a.n", "a.u"}
    assert within([model], ["a.b", "stem"]) == {"a.b", "stem"}
    assert within([model, other], ["trunk", "stem"]) == {"trunk.stem", "stem"}
    for name, hint in (
        ("a.bb", r"did you mean a\.b\?"),
        ("trunk.stm", r"did you mean trunk\.stem\?"),
        ("trunc", r"did you mean trunk\?"),
        ("/Reshape_2", r"expected such as trunk\.stem, a\.b, a\.t, a\.n"),
    ):
        with pytest.raises(InputError, match=rf"^no module '{name}' to exclude; {hint}$"):
            within([other], [name])


def test_all_steps_of_a_head_and_rdsa_as_it_was(exported):
    model = onnx.load(exported.directory / "head.onnx")
    products = find_products(model)
    layers = {product.layer for product in products}
    kept = default_kept(layers)
    assert set(kept) == {
        "sparse.sample.context", "sparse.sample.endpoints", "sparse.span.4", "classify", "actionness.mlp.4",
        "text_pool.weight",
    }  # fmt: skip
    quantised = quantise_model(model, layers - set(kept), {p.activation: 0.05 for p in products}).model
    before, after = nodes_by_name(model), nodes_by_name(quantised)
    assert quantised.functions == model.functions
    for old, new in zip(rdsa_nodes(model.graph.node), rdsa_nodes(quantised.graph.node), strict=True):
        assert old == new
    for product in products:
        same = list(before[product.node].input) == list(after[product.node].input)
        assert same == (product.layer in kept), product
    softmax = [node for node in model.graph.node if node.op_type in ("Softmax", "LayerNormalization")]
    assert all(after[node.name] == node for node in softmax)
    readers = [node.input[0] for node in quantised.graph.node if node.op_type == "DequantizeLinear"]
    weights = [name for name in readers if name.removesuffix("/int8") in {p.weight for p in products}]
    assert len(weights) == sum(p.layer not in kept for p in products)  # one each, though the steps share weights
    onnx.checker.check_model(quantised, full_check=True)


# ---------------------------------------------------------------- the search

COSTS = {"a": 0.1, "b": 3.0, "c": 0.0, "d": 1.0}


def costs(layers: frozenset[str]) -> Measured:
    return Measured(sum(COSTS[layer] for layer in layers), float(len(layers)))


def test_the_search_leaves_out_the_most_sensitive():
    heard = []
    ranked = rank_layers(list(COSTS), costs, lambda *done: heard.append(done))
    assert [one.layer for one in ranked] == ["b", "d", "a", "c"]
    assert heard == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for budget, left_out in ((5, []), (1.2, ["b"]), (0.5, ["b", "d"]), (0, ["b", "d", "a"])):
        assert search_within(ranked, costs, budget, lambda done, total: None) == left_out


def test_errors_rank_layers_that_cost_no_points():
    errors = {"a": 0.1, "b": 0.3, "c": 0.2}
    ranked = rank_layers(list(errors), lambda s: Measured(0, errors[next(iter(s))]), lambda done, total: None)
    assert [one.layer for one in ranked] == ["b", "c", "a"]


def test_no_layer_within_the_budget():
    ranked = rank_layers(["b", "d"], costs, lambda done, total: None)
    with pytest.raises(
        InputError, match=r"--budget 0\.5: no layer can be int8 within it, the least drop reached is 1 points"
    ):
        search_within(ranked, costs, 0.5, lambda done, total: None)
