"""The plugin under TensorRT's real Python bindings: load_library -> engine -> context -> execute_async_v3.

libnvinfer is the mock of tests/mocked_tensorrt.py; bindings, plugin and values are real. Functions whose names begin
with `in_process_` run in a fresh process, the only place where `tensorrt` can be imported, and return JSON.
Shape letters: B batch, T clips, M moments, F width, H heads, P points.
"""

from __future__ import annotations

import ctypes
import importlib
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from mocked_tensorrt import (
    BINDINGS,
    EngineNode,
    EngineTensor,
    MockedTensorRT,
    engine_bytes,
    mocked_tensorrt,
    rdsa_engine,
)
from rdsa_cases import SMALL_CASES, RdsaCase, make_inputs

from sdst_runtime.doctor.rdsa_oracle import rdsa_oracle

NAMES = ("ragged", "length_1", "one_clip_at_all", "two_clips", "beyond", "huge_offsets", "odd_points", "default_heads")
CASES = [case for case in SMALL_CASES if case.name in NAMES]
RAGGED = next(case for case in CASES if case.name == "ragged")  # F 32, H 2, P 4
MOST = (4, 24, 30)  # B, T, M
USER_MANAGED = "USER_MANAGED"


@pytest.fixture(scope="module", params=BINDINGS, ids=str)
def tensorrt(request) -> MockedTensorRT:
    return mocked_tensorrt(request.param)


class Session:
    """An engine, a context and the errors that TensorRT logged. Tensors are NumPy arrays.

    `engine` is None when TensorRT refused the bytes.
    """

    def __init__(self, engine: bytes, strategy: str = "STATIC") -> None:
        self.trt: Any = importlib.import_module("tensorrt")
        self.errors: list[str] = []
        self.runtime = self.trt.Runtime(_logger(self.trt, self.errors))
        self.engine = self.runtime.deserialize_cuda_engine(engine)
        if self.engine is not None:
            strategies = self.trt.ExecutionContextAllocationStrategy
            self.context = self.engine.create_execution_context(getattr(strategies, strategy))

    def tensors(self, mode: str) -> list[str]:
        names = map(self.engine.get_tensor_name, range(self.engine.num_io_tensors))
        return [name for name in names if self.engine.get_tensor_mode(name) == getattr(self.trt.TensorIOMode, mode)]

    def set_shapes(self, inputs: dict[str, np.ndarray]) -> bool:
        return all(self.context.set_input_shape(name, array.shape) for name, array in inputs.items())

    def set_addresses(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The arrays at the addresses set: copies of the inputs, and outputs full of NaN."""
        arrays = {name: _aligned(array) for name, array in inputs.items()}
        for name in self.tensors("OUTPUT"):
            dtype = self.trt.nptype(self.engine.get_tensor_dtype(name))
            arrays[name] = _aligned(np.full(tuple(self.context.get_tensor_shape(name)), np.nan, dtype))
        for name, array in arrays.items():
            assert self.context.set_tensor_address(name, array.ctypes.data), self.errors
        return arrays

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert self.set_shapes(inputs), self.errors
        arrays = self.set_addresses(inputs)
        assert self.context.execute_async_v3(0), self.errors
        return arrays


def _logger(trt: Any, errors: list[str]) -> Any:
    class ErrorList(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity == trt.ILogger.Severity.ERROR:
                errors.append(msg)

    return ErrorList()


def _aligned(array: np.ndarray) -> np.ndarray:
    """A copy that begins at a multiple of 256 bytes."""
    memory = np.empty(array.nbytes + 256, np.uint8)
    start = -memory.ctypes.data % 256
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def _load(plugin: str) -> Any:
    """The library's handle, or None."""
    return importlib.import_module("tensorrt").get_plugin_registry().load_library(plugin)


def _message(plugin: str) -> str:
    """The plugin's own words on this thread's last failure."""
    library = ctypes.CDLL(plugin)
    library.sdst_last_error.restype = ctypes.c_char_p
    return library.sdst_last_error().decode()


def _inputs(case: RdsaCase, dtype: str = "float") -> dict[str, np.ndarray]:
    inputs = make_inputs(case)
    inputs["value"] = inputs["value"].astype(np.float16 if dtype == "half" else np.float32)
    return inputs


def in_process_run_cases(plugin: str, dtype: Literal["float", "half"], directory: str) -> None:
    """Saves each case's output; one context runs all cases of the same F, H and P, one after the other."""
    _load(plugin)
    sessions: dict[tuple[int, int, int], Session] = {}
    for case in CASES:
        key = (case.F, case.H, case.P)
        if key not in sessions:
            sessions[key] = Session(rdsa_engine(*key, MOST, dtype))
        np.save(Path(directory) / f"{case.name}.npy", sessions[key].run(_inputs(case, dtype))["out"])


@pytest.mark.parametrize("dtype", ["float", "half"])
def test_outputs_equal_the_oracle(tensorrt, dtype, tmp_path):
    tensorrt.call(in_process_run_cases, str(tensorrt.plugin), dtype, str(tmp_path))
    rounding = 2**-11 if dtype == "half" else 0  # of the result, relative
    for case in CASES:
        out = np.load(tmp_path / f"{case.name}.npy")
        expected = rdsa_oracle(**_inputs(case, dtype), num_heads=case.H, num_points=case.P)
        assert out.dtype == (np.float16 if dtype == "half" else np.float32)
        np.testing.assert_allclose(out, expected, rtol=rounding, atol=case.tolerance, err_msg=case.name)


def in_process_version() -> str:
    return importlib.import_module("tensorrt").__version__


def test_the_bindings_are_of_their_version(tensorrt):
    assert tensorrt.call(in_process_version) == tensorrt.bindings.version


def in_process_register(plugin: str) -> dict[str, Any]:
    trt: Any = importlib.import_module("tensorrt")
    registry = trt.get_plugin_registry()
    absent = Session(rdsa_engine(32, 2, 4, MOST))
    handle = _load(plugin)
    names = [[creator.name, creator.plugin_version, creator.plugin_namespace] for creator in registry.all_creators]
    again = _load(plugin)
    present = Session(rdsa_engine(32, 2, 4, MOST)).engine is not None
    registry.deregister_library(handle)
    return {
        "absent": absent.engine is None,
        "errors": absent.errors,
        "names": names,
        "again": again is None,
        "present": present,
        "found_after": registry.get_creator("RDSA", "1", "sdst") is not None,
        "loads_once_more": _load(plugin) is not None,
    }


def test_registry_loads_the_library_once_and_engines_need_it(tensorrt):
    said = tensorrt.call(in_process_register, str(tensorrt.plugin))
    assert said["absent"]
    assert "cannot find plugin RDSA, version 1, namespace sdst" in said["errors"][0]
    assert said["names"] == [["RDSA", "1", "sdst"]]
    assert said["again"]
    assert said["present"]
    assert not said["found_after"]
    assert said["loads_once_more"]


def in_process_inspect(plugin: str) -> dict[str, Any]:
    _load(plugin)
    session = Session(rdsa_engine(32, 2, 4, MOST, "half"))
    trt, engine, context = session.trt, session.engine, session.context
    before = [context.infer_shapes(), list(context.get_tensor_shape("out"))]
    session.set_shapes(_inputs(RAGGED, "half"))
    inspector = engine.create_engine_inspector()
    return {
        "inputs": session.tensors("INPUT"),
        "outputs": session.tensors("OUTPUT"),
        "dtypes": [trt.nptype(engine.get_tensor_dtype(name)).__name__ for name in session.tensors("INPUT")],
        "shape": list(engine.get_tensor_shape("out")),
        "profiles": engine.num_optimization_profiles,
        "profile_shape": [list(dims) for dims in engine.get_tensor_profile_shape("reference", 0)],
        "device_memory": engine.device_memory_size_v2,
        "same_bytes": bytes(engine.serialize()) == rdsa_engine(32, 2, 4, MOST, "half"),
        "layers": json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))["Layers"],
        "before": before,
        "after": [context.infer_shapes(), list(context.get_tensor_shape("out"))],
        "strides": list(context.get_tensor_strides("out")),
        "max_bytes": context.get_max_output_size("out"),
    }


def test_engine_and_context_tell_their_tensors(tensorrt):
    said = tensorrt.call(in_process_inspect, str(tensorrt.plugin))
    inputs = ["value", "endpoints", "reference", "length"]
    assert (said["inputs"], said["outputs"]) == (inputs, ["out"])
    assert said["dtypes"] == ["float16", "float32", "float32", "int32"]
    assert said["shape"] == [-1, -1, 32]
    assert said["profiles"] == 1
    assert said["profile_shape"] == [[1, 1, 2], [4, 30, 2], [4, 30, 2]]
    assert said["device_memory"] == 0
    assert said["same_bytes"]
    (layer,) = said["layers"]
    assert (layer["Name"], layer["LayerType"], layer["PluginType"]) == ("step_0", "PLUGIN_V3", "RDSA")
    unknown = "N/A due to dynamic shapes"  # until all shapes are set, as TensorRT's inspector says it
    assert layer["Outputs"] == [{"Name": "out", "Dimensions": [-1, -1, 32], "Format/Datatype": unknown}]
    assert said["before"] == [inputs, [-1, -1, 32]]
    assert said["after"] == [[], [RAGGED.B, RAGGED.M, 32]]
    assert said["strides"] == [RAGGED.M * 32, 32, 1]
    assert said["max_bytes"] == 4 * 30 * 32 * 2


def in_process_refusals(plugin: str) -> dict[str, Any]:
    """For each thing done wrong: what the call returned, and the first error that it logged."""
    _load(plugin)
    session = Session(rdsa_engine(32, 2, 4, MOST))
    inputs, context = _inputs(RAGGED), session.context
    said: dict[str, Any] = {}

    def note(name: str, result: bool) -> None:
        said[name] = [result, session.errors[0]]
        session.errors.clear()

    note("no shapes", context.execute_async_v3(0))
    note("above the profile", context.set_input_shape("value", (5, 17, 32)))
    note("another width", context.set_input_shape("value", (4, 17, 64)))
    note("another rank", context.set_input_shape("length", (4, 1)))
    note("no such input", context.set_input_shape("out", (4, 5, 32)))
    assert session.set_shapes(inputs)
    note("no addresses", context.execute_async_v3(0))
    arrays = session.set_addresses(inputs)
    note("crooked address", context.set_tensor_address("value", arrays["value"].ctypes.data + 16))
    note("a stream for the host", context.execute_async_v3(256))
    said["stream"] = _message(plugin)
    assert context.set_input_shape("endpoints", (4, 16, 48))
    note("endpoints of other clips", context.execute_async_v3(0))
    said["clips"] = _message(plugin)
    session = Session(rdsa_engine(32, 2, 4, MOST, E=40))
    inputs["endpoints"] = inputs["endpoints"][..., :40]
    assert session.set_shapes(inputs)
    session.set_addresses(inputs)
    note("wrong E", session.context.execute_async_v3(0))
    said["E"] = _message(plugin)
    return said


REFUSALS = {
    "no shapes": "the shape of input value is not set",
    "above the profile": "value of shape [5, 17, 32] does not satisfy optimization profile 0",
    "another width": "value of shape [4, 17, 64] does not satisfy",
    "another rank": "length of shape [4, 1] does not satisfy",
    "no such input": "there is no input out",
    "no addresses": "the address of value is not set",
    "crooked address": "the address of value is not aligned to 256 bytes",
    "a stream for the host": "plugin RDSA of node step_0 failed in enqueue",
    "endpoints of other clips": "plugin RDSA of node step_0 refused the shapes",
    "wrong E": "plugin RDSA of node step_0 refused the shapes",
}


def test_refusals_return_false_and_are_logged(tensorrt):
    said = tensorrt.call(in_process_refusals, str(tensorrt.plugin))
    for name, error in REFUSALS.items():
        refused, logged = said[name]
        assert (refused, error in logged) == (False, True), (name, said[name])
    assert "stream" in said["stream"]
    assert all(word in said["clips"] for word in ("endpoints", "17", "16"))
    assert all(word in said["E"] for word in ("endpoints", "48", "40"))


def in_process_bad_engines(plugin: str) -> dict[str, Any]:
    _load(plugin)
    good = rdsa_engine(32, 2, 4, MOST)
    engines = {
        "good": good,
        "empty": b"",
        "truncated": good[: len(good) // 2],
        "last byte lost": good[:-1],
        "altered": good.replace(b"num_heads 2", b"num_heads 4"),
        "no plan": b"\x89ONNX" + good,
        "no heads": rdsa_engine(32, 0, 4, MOST),
    }
    sessions = {name: Session(engine) for name, engine in engines.items()}
    return {name: [session.engine is not None, *session.errors] for name, session in sessions.items()}


def test_damaged_engines_and_bad_fields_are_refused(tensorrt):
    said = tensorrt.call(in_process_bad_engines, str(tensorrt.plugin))
    assert said.pop("good") == [True]
    assert "refused the fields of node step_0" in said.pop("no heads")[1]
    for name, (accepted, *errors) in said.items():
        assert (accepted, len(errors)) == (False, 1), (name, errors)
    assert "truncated" in said["truncated"][1]
    assert "altered" in said["altered"][1]


def _chain() -> bytes:
    """Three nodes, of which the second and third read the output before them as their value; two profiles."""
    tensors = [
        EngineTensor("value", "input", "float", (-1, -1, 32)),
        EngineTensor("endpoints", "input", "float", (-1, -1, 48)),
        EngineTensor("reference", "input", "float", (-1, -1, 2)),
        EngineTensor("length", "input", "int32", (-1,)),
        EngineTensor("hidden_0", "internal", "float", ("value:0", "reference:1", 32)),
        EngineTensor("hidden_1", "internal", "float", ("value:0", "reference:1", 32)),
        EngineTensor("endpoints_2", "input", "float", (-1, -1, 48)),
        EngineTensor("length_2", "input", "int32", (-1,)),
        EngineTensor("out", "output", "float", ("value:0", "reference:1", 32)),
    ]
    fields = {"num_heads": 2, "num_points": 4}
    nodes = [
        EngineNode("step_0", ("value", "endpoints", "reference", "length"), ("hidden_0",), fields),
        EngineNode("step_1", ("hidden_0", "endpoints_2", "reference", "length_2"), ("hidden_1",), fields),
        EngineNode("step_2", ("hidden_1", "endpoints_2", "reference", "length_2"), ("out",), fields),
    ]

    def profile(batch: int) -> dict[str, Any]:
        clips = {"value": 32, "endpoints": 48, "endpoints_2": 48, "reference": 2}
        ranges: dict[str, Any] = {
            name: ((1, 1, width), (batch, 8, width), (batch, 24, width)) for name, width in clips.items()
        }
        return ranges | dict.fromkeys(("length", "length_2"), ((1,), (batch,), (batch,)))

    return engine_bytes(tensors, nodes, [profile(1), profile(4)])


def _chain_inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    inputs = _inputs(RAGGED)
    inputs["endpoints_2"] = rng.standard_normal((RAGGED.B, RAGGED.M, 48)).astype(np.float32)
    inputs["length_2"] = rng.integers(1, RAGGED.M + 1, RAGGED.B).astype(np.int32)
    return inputs


def in_process_chain(plugin: str, directory: str) -> dict[str, Any]:
    """Saves the chain's output from a context in the caller's memory, and from one with memory of its own."""
    _load(plugin)
    inputs = _chain_inputs()
    session = Session(_chain(), USER_MANAGED)
    said: dict[str, Any] = {"bytes": [session.engine.get_device_memory_size_for_profile_v2(i) for i in (0, 1)]}
    said["batch in profile 0"] = session.set_shapes(inputs)
    said["profile"] = session.context.set_optimization_profile_async(1, 0)
    session.set_shapes(inputs)
    arrays = session.set_addresses(inputs)
    said["no memory"] = session.context.execute_async_v3(0)
    memory = _aligned(np.zeros(said["bytes"][1], np.uint8))
    session.context.set_device_memory(memory.ctypes.data, memory.nbytes)
    said["memory"] = session.context.execute_async_v3(0)
    said["used"] = bool(memory.any())
    np.save(Path(directory) / "managed.npy", arrays["out"])
    own = Session(_chain())
    own.context.set_optimization_profile_async(1, 0)
    np.save(Path(directory) / "own.npy", own.run(inputs)["out"])
    return said


def test_chained_nodes_profiles_and_device_memory(tensorrt, tmp_path):
    said = tensorrt.call(in_process_chain, str(tensorrt.plugin), str(tmp_path))
    assert said["bytes"] == [2 * 24 * 32 * 4, 2 * 4 * 24 * 32 * 4]
    assert (said["batch in profile 0"], said["profile"]) == (False, True)
    assert (said["no memory"], said["memory"], said["used"]) == (False, True, True)
    inputs = _chain_inputs()
    hidden = rdsa_oracle(inputs["value"], inputs["endpoints"], inputs["reference"], inputs["length"], 2, 4)
    for _ in range(2):
        hidden = rdsa_oracle(hidden, inputs["endpoints_2"], inputs["reference"], inputs["length_2"], 2, 4)
    for name in ("managed", "own"):
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy"), hidden, rtol=0, atol=3e-5, err_msg=name)
