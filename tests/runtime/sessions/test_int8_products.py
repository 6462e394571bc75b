"""int8 on processors whose products saturate: found out, and right all the same.

Three ways to meet them: the processor of the machine, when it is one; a simulation of the instruction in numpy; and
ONNX Runtime's real kernels for AVX2 under an emulated processor, which needs qemu-x86_64 (Debian: qemu-user).
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from int8_product import known_product_model
from int8_world import make_world, silent
from places import TESTS

from sdst_calib.int8.calibrate import Int8Options, calibrate_int8
from sdst_runtime.data.dataset import pad_inputs
from sdst_runtime.doctor.examine import check_int8
from sdst_runtime.grounding.bundle import Bundle
from sdst_runtime.sessions import int8_products
from sdst_runtime.sessions.int8_products import (
    FLOAT_PRODUCTS,
    MERGED_PAIRS,
    MODEL,
    NO_ROUNDING,
    expected_product,
    has_pairs,
    known_product,
    known_weight,
    products_are_exact,
)
from sdst_runtime.sessions.onnxruntime import OnnxRuntimeSession

SMALL_ERROR = 0.005  # of an output against exact Q/DQ, norm over norm: room for codes that rounding moves by one


def saturating_product() -> np.ndarray:
    """The known product as VPMADDUBSW computes it: codes shifted to u8, pairs of products added in 16 bits."""
    codes = np.array([[127], [-127]]) + 128 + np.zeros(len(known_weight()), int)
    products = codes[:, :, None] * known_weight().astype(int)
    pairs = np.clip(products.reshape(2, -1, 2, products.shape[-1]).sum(2), -(2**15), 2**15 - 1)
    return (pairs.sum(1) - 128 * known_weight().sum(0, int)).astype(np.float32)


@pytest.fixture(scope="module")
def int8(exported, tmp_path_factory) -> tuple[Path, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """An int8 bundle, inputs of its head, and what its Q/DQ make of them exactly."""
    folder = tmp_path_factory.mktemp("int8_products")
    world = make_world(exported, folder)
    out, source = folder / "int8", Bundle.open(exported.directory)  # without the planted layer
    calibrate_int8(source, out, world.queries, Int8Options("mse"), silent, 1)
    inputs = pad_inputs([s.video for s in world.queries.measured], [s.text for s in world.queries.measured])
    projected = exact(out / "projection.onnx", {name: inputs[name] for name in ("video", "video_mask")})["projected"]
    given = {"projected": projected, **{name: inputs[name] for name in ("video_mask", "text", "text_mask")}}
    return out / "head.onnx", given, exact(out / "head.onnx", given)


def exact(path: Path, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A model without any optimisation: Q/DQ and products of floats, as the file has them."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, map(np.asarray, session.run(names, inputs)), strict=True))


def errors(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> dict[str, float]:
    return {n: float(np.linalg.norm(got[n] - expected[n]) / np.linalg.norm(expected[n])) for n in expected}


def test_the_model_that_ships_is_the_one_that_is_meant():
    assert onnx.load(MODEL) == known_product_model()


def test_the_known_product_tells_saturation_from_exact_sums():
    np.testing.assert_array_equal(
        expected_product(), [[64 * 127**2, -64 * 127**2] * 4, [-64 * 127**2, 64 * 127**2] * 4]
    )
    np.testing.assert_array_equal(saturating_product()[0], [8160, -8192] * 4)
    assert not np.array_equal(saturating_product(), expected_product())


def test_this_processor_is_one_or_the_other():
    got = known_product()
    np.testing.assert_array_equal(got, expected_product() if products_are_exact() else saturating_product())
    np.testing.assert_array_equal(known_product(FLOAT_PRODUCTS), expected_product())


def test_a_session_is_exact_on_this_processor(int8):
    path, inputs, expected = int8
    with OnnxRuntimeSession(path, 1, "cpu", as_written=True) as session:
        assert max(errors(session.run(inputs), expected).values()) < SMALL_ERROR


def test_a_session_keeps_to_floats_where_products_saturate(int8, exported, monkeypatch):
    """As written it rounds as Q/DQ do; else activations are not rounded, which is nearer to float32 and as fast."""
    path, inputs, expected = int8
    monkeypatch.setattr(int8_products, "known_product", saturating_product)
    products_are_exact.cache_clear()
    try:
        check = check_int8()
        with OnnxRuntimeSession(path, 1, "cpu", as_written=True) as session:
            got = session.run(inputs)
        with OnnxRuntimeSession(path, 1, "cpu") as session:
            unrounded = session.run(inputs)
    finally:
        products_are_exact.cache_clear()
    assert (check.state, check.needed) == ("fine", True)
    assert check.found.startswith("saturate here, so int8 models are computed in float")
    assert max(errors(got, expected).values()) < 1e-4
    with OnnxRuntimeSession(exported.directory / "head.onnx", 1, "cpu") as session:
        wide = session.run(inputs)
    rounding, left = errors(expected, wide), errors(unrounded, wide)
    assert all(left[name] < 0.9 * rounding[name] for name in wide), (left, rounding)
    assert not any(np.array_equal(unrounded[name], got[name]) for name in wide)


def test_a_file_says_whether_it_has_pairs(int8, exported, tmp_path):
    assert has_pairs(int8[0])
    assert not has_pairs(exported.directory / "head.onnx")
    (tmp_path / "empty.onnx").touch()
    assert not has_pairs(tmp_path / "empty.onnx")


def test_a_session_computes_every_product_with_a_pair_in_int8(int8, monkeypatch, tmp_path):
    """Also those that read one activation, whose pairs ONNX Runtime would make one, and then compute them in float."""
    if not products_are_exact():
        pytest.skip("needs a processor whose int8 products are exact (VNNI, AMX)")
    path, plain, optimised = int8[0], ort.InferenceSession, tmp_path / "optimised.onnx"
    pairs = sum(node.op_type == "QuantizeLinear" for node in onnx.load(path).graph.node)

    def opened(file, options, **kwargs):
        options.optimized_model_filepath = str(optimised)
        return plain(file, options, **kwargs)

    def products_in_int8() -> int:
        return sum(node.op_type == "MatMulIntegerToFloat" for node in onnx.load(optimised).graph.node)

    opened(str(path), ort.SessionOptions(), providers=["CPUExecutionProvider"])
    assert products_in_int8() < pairs
    opened(str(path), ort.SessionOptions(), providers=["CPUExecutionProvider"], disabled_optimizers=[MERGED_PAIRS])
    assert products_in_int8() == pairs
    monkeypatch.setattr(ort, "InferenceSession", opened)
    OnnxRuntimeSession(path, 1, "cpu").close()
    assert products_in_int8() == pairs


def test_a_file_without_pairs_is_opened_as_ever(exported, monkeypatch):
    """Whatever the processor: nothing is tried on it, no optimiser is left out and no entry set for int8."""
    plain, seen = ort.InferenceSession, {}

    def opened(file, options, **kwargs):
        seen.update(kwargs)
        for name, _ in (FLOAT_PRODUCTS, NO_ROUNDING):
            with pytest.raises(RuntimeError, match="does not have configuration"):
                options.get_session_config_entry(name)
        return plain(file, options, **kwargs)

    monkeypatch.setattr(int8_products, "known_product", lambda: pytest.fail("tried on the processor"))
    monkeypatch.setattr(ort, "InferenceSession", opened)
    products_are_exact.cache_clear()
    try:
        OnnxRuntimeSession(exported.directory / "head.onnx", 1, "cpu").close()
    finally:
        products_are_exact.cache_clear()
    assert seen["disabled_optimizers"] == ["SkipLayerNormFusion"]


def test_kernels_that_saturate(int8, tmp_path):
    """The session under an emulated Haswell, and ONNX Runtime by itself there, which the session must not follow."""
    emulator = shutil.which("qemu-x86_64")
    if emulator is None or platform.machine() != "x86_64":
        pytest.skip("needs qemu-x86_64 (Debian: qemu-user) on x86-64")
    path, inputs, expected = int8
    np.savez(tmp_path / "inputs.npz", **inputs)
    script = TESTS / "run_int8_head.py"
    command = [emulator, "-cpu", "Haswell", sys.executable, str(script), str(path), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"exact": False}
    session, plain = (dict(np.load(tmp_path / f"{name}.npz")) for name in ("session", "plain"))
    assert max(errors(session, expected).values()) < SMALL_ERROR
    assert max(errors(plain, expected).values()) > 0.1


def test_doctor_says_what_a_broken_runtime_does(monkeypatch):
    monkeypatch.setattr(int8_products, "MODEL", MODEL.with_name("missing.onnx"))
    products_are_exact.cache_clear()
    try:
        check = check_int8()
    finally:
        products_are_exact.cache_clear()
    assert (check.state, check.needed) == ("fault", True)
    assert check.found.startswith(f"ONNX Runtime {ort.__version__} does not run a small int8 model")
