"""TensorRTSession end to end: the real bindings of three versions, the mock of libnvinfer and a double of the GPU.

The engine is two nodes of the real plugin, computed on the host. Functions whose names begin with `in_process_` run in
a fresh process, the only place where `tensorrt` can be imported, and return JSON.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

import numpy as np
import pytest
from engine_files import (
    LARGE,
    PROFILES,
    SMALL,
    TOLERANCE,
    engine_inputs,
    engine_oracle,
    message,
    opened,
    worst,
    write_engine,
)
from host_device import HostDevice, HostStream
from mocked_tensorrt import BINDINGS, MockedTensorRT, mocked_tensorrt

from sdst_runtime.errors import DeviceError
from sdst_runtime.sessions.tensorrt import lane
from sdst_runtime.sessions.tensorrt.compat import load_tensorrt, shared_logger, take_errors

SHAPES = ((2, 8, 5), (1, 3, 2), (4, 24, 9), (3, 8, 5), (1, 24, 1))  # B, T, M


@pytest.fixture(scope="module", params=BINDINGS, ids=str)
def tensorrt(request) -> MockedTensorRT:
    return mocked_tensorrt(request.param)


@pytest.fixture
def plan(tensorrt, tmp_path) -> str:
    return str(write_engine(tmp_path, tensorrt.bindings.version, tensorrt.plugin))


# ---------------------------------------------------------------- answers


def in_process_answers(plan: str) -> dict[str, Any]:
    """Each of SHAPES four times, interleaved: enqueued, captured, and replayed twice; then without graphs."""
    session, device = opened(plan)
    errors = [worst(session, *shape, seed) for seed in range(4) for shape in SHAPES]
    calls = [call for call, _ in device.calls]
    said = {
        "errors": errors,
        "captures": calls.count("capture"),
        "launches": calls.count("launch"),
        "inputs": {name: str(info) for name, info in session.inputs.items()},
        "metadata": {name: session.metadata[name] for name in ("sdst.kind", "sdst.steps", "sdst.max_clips")},
    }
    session.close()
    said["left"], said["open_graphs"] = len(device.live), device.open_graphs
    session, device = opened(plan, cuda_graphs=False)
    said["plain"] = [worst(session, *SHAPES[0], seed) for seed in range(3)]
    said["plain_captures"] = [call for call, _ in device.calls].count("capture")
    return said


def test_answers_are_the_oracles_enqueued_captured_and_replayed(tensorrt, plan):
    said = tensorrt.call(in_process_answers, plan)
    assert max(said["errors"] + said["plain"]) < TOLERANCE
    assert (said["captures"], said["launches"]) == (len(SHAPES), 3 * len(SHAPES))
    assert said["plain_captures"] == 0
    assert (said["left"], said["open_graphs"]) == (0, 0)
    assert said["inputs"]["value"] == "float32 [B, T, 32]"
    assert said["metadata"] == {"sdst.kind": "head", "sdst.steps": "2", "sdst.max_clips": "24"}


def in_process_order(plan: str) -> dict[str, Any]:
    session, device = opened(plan)
    inputs = engine_inputs(1, 4, 2)
    session.run(inputs)
    first, device.calls = device.calls, []
    session.run(inputs)
    device.calls = []
    session.run(inputs)
    return {"first": first, "third": device.calls}


def test_copies_and_kernels_are_ordered_by_events_on_two_streams(tensorrt, plan):
    said = tensorrt.call(in_process_order, plan)
    compute, copies = "stream 1", "stream 2"
    sent = [["to device", copies]] * 6 + [["record", copies], [f"wait for {copies}", compute]]
    fetched = [["record", compute], [f"wait for {compute}", copies], ["to host", copies], ["synchronize", copies]]
    assert said["first"] == sent + fetched
    assert said["third"] == [*sent, ["launch", compute], *fetched]


def in_process_warm_up(plan: str) -> dict[str, Any]:
    session, device = opened(plan, workers=2)
    session.warm_up()
    warm = device.allocations
    captures = [call for call, _ in device.calls].count("capture")
    device.calls = []
    shapes = [(2, 8, 5), (2, 12, 9)]  # the usual ones of the two profiles
    errors = [worst(session, *shape) for shape in shapes]
    calls = [call for call, _ in device.calls]
    return {
        "captures": captures,
        "errors": errors,
        "launches": calls.count("launch"),
        "captured_later": calls.count("capture"),
        "allocated_later": device.allocations - warm,
    }


def test_warm_up_allocates_and_captures_in_every_worker(tensorrt, plan):
    said = tensorrt.call(in_process_warm_up, plan)
    assert said["captures"] == 2 * len(PROFILES)
    assert max(said["errors"]) < TOLERANCE
    assert (said["launches"], said["captured_later"], said["allocated_later"]) == (2, 0, 0)


def in_process_many_shapes(plan: str) -> dict[str, Any]:
    """More shapes than graphs are kept, taking turns; then one of those without a graph again and again."""
    session, device = opened(plan)
    errors = [worst(session, 1, T, 1) for _ in range(4) for T in range(1, 25)]
    said: dict[str, Any] = {"captures": [call for call, _ in device.calls].count("capture")}
    device.calls = []
    errors += [worst(session, 1, 24, 1) for _ in range(7)]  # after 4 calls one by one 4 more, then a place
    said["busy"] = [call for call, _ in device.calls if call in ("capture", "launch")]
    device.calls = []
    errors += [worst(session, 1, 1, 1), worst(session, 1, 2, 1)]  # the first was used longest ago
    said["others"] = [call for call, _ in device.calls if call in ("capture", "launch")]
    said["kept"] = device.open_graphs
    session.close()
    return said | {"errors": errors, "left": device.open_graphs}


def test_shapes_that_take_turns_do_not_capture_at_each(tensorrt, plan):
    said = tensorrt.call(in_process_many_shapes, plan)
    assert max(said["errors"]) < TOLERANCE
    assert said["captures"] == 16
    assert said["busy"] == ["capture", "launch", "launch", "launch"]
    assert said["others"] == ["launch"]
    assert (said["kept"], said["left"]) == (16, 0)


# ---------------------------------------------------------------- inputs and outputs on the device


class OnDevice:
    """A contiguous array of the double's GPU, which speaks DLPack or the CUDA array interface."""

    def __init__(self, array: np.ndarray, speaks: str) -> None:
        memory = np.empty(array.nbytes + 256, np.uint8)
        start = -memory.ctypes.data % 256
        self.array = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        self.array[...] = array
        if speaks == "dlpack":
            self.__dlpack__, self.__dlpack_device__ = self.array.__dlpack__, self.array.__dlpack_device__
        else:
            self.__cuda_array_interface__ = {
                "version": 3, "shape": array.shape, "typestr": array.dtype.str, "strides": None, "stream": 7,
                "data": (self.array.ctypes.data, False),
            }  # fmt: skip


def in_process_device_arrays(plan: str) -> dict[str, Any]:
    session, device = opened(plan)
    inputs = engine_inputs(2, 7, 4)
    expected = engine_oracle(inputs)
    said: dict[str, Any] = {}
    for speaks in ("dlpack", "cuda"):
        arrays = {name: OnDevice(array, speaks) for name, array in inputs.items()}
        device.calls = []
        errors = [float(np.abs(session.run(arrays)["out"] - expected).max()) for _ in range(3)]
        arrays["value"].array[...] *= 2  # read anew by the captured graph
        errors.append(float(np.abs(session.run(arrays)["out"] - 2 * expected).max()))
        calls = [call for call, _ in device.calls]
        said[speaks] = [errors, calls.count("to device"), calls.count("launch")]
        said[f"{speaks} waits"] = calls.count("wait for a stream of others")
    mixed: dict[str, Any] = inputs | {"value": OnDevice(inputs["value"], "dlpack")}
    device.calls, before = [], len(device.live)
    out = session.run_on_device(mixed)["out"]
    said["copies"] = [[call for call, _ in device.calls].count(kind) for kind in ("to device", "to host")]
    said["shape"], said["dtype"] = out.shape, str(out.dtype)
    said["interface"] = out.__cuda_array_interface__["shape"]
    view = np.from_dlpack(out)
    del out
    said["out"] = float(np.abs(view - expected).max())
    said["held"] = len(device.live) - before
    del view
    said["freed"] = len(device.live) - before
    return said


def test_device_arrays_go_in_and_out_without_a_copy(tensorrt, plan):
    said = tensorrt.call(in_process_device_arrays, plan)
    for speaks in ("dlpack", "cuda"):
        errors, copies, launches = said[speaks]
        assert max(errors) < 2 * TOLERANCE
        assert (copies, launches) == (0, 3)
    assert (said["dlpack waits"], said["cuda waits"]) == (0, 4 * 6)
    assert said["copies"] == [5, 0]
    assert (said["shape"], said["dtype"], said["interface"]) == ([2, 4, 32], "float32", [2, 4, 32])
    assert said["out"] < TOLERANCE
    assert (said["held"], said["freed"]) == (1, 0)


# ---------------------------------------------------------------- bad input


def in_process_bad_inputs(plan: str) -> dict[str, Any]:
    session, device = opened(plan)
    good = engine_inputs(2, 8, 5)
    value = good["value"]
    unaligned, transposed, host = (OnDevice(value, "cuda") for _ in range(3))
    unaligned.__cuda_array_interface__["data"] = (unaligned.array.ctypes.data + 64, False)
    transposed.__cuda_array_interface__["strides"] = (4, 64, 8)
    host.__cuda_array_interface__["data"] = (0, False)
    foreign = OnDevice(value, "dlpack")
    foreign.__dlpack_device__ = lambda: (2, 1)  # pyright: ignore[reportAttributeAccessIssue]
    changes: dict[str, dict[str, Any]] = {
        "none": {"value": None},
        "type": {"value": value.astype(np.float64)},
        "rank": {"value": value[0]},
        "width": {"value": value[..., :16]},
        "sizes": {"length": good["length"][:1]},
        "extra": {"query": value},
        "too long": engine_inputs(2, 25, 5),
        "empty": {"reference": np.zeros((2, 0, 2), np.float32), "endpoints_2": np.zeros((2, 0, 48), np.float32)},
        "unaligned": {"value": unaligned},
        "foreign": {"value": foreign},
        "transposed": {"value": transposed},
        "host": {"value": host},
    }
    said = {name: message(lambda change=change: session.run({**good, **change})) for name, change in changes.items()}
    said["missing"] = message(lambda: session.run({"value": value}))
    strided = session.run(good | {"value": np.asfortranarray(value)})["out"]
    said["strided"] = str(np.abs(strided - engine_oracle(good)).max())
    session.close()
    session.close()
    said["closed"] = message(lambda: session.run(good))
    said["closed warm-up"] = message(session.warm_up)
    said["left"] = str(len(device.live))
    return said


BAD_INPUTS = {
    "none": ("InputError", "value", "float32 [B, T, 32]", "object"),
    "type": ("InputError", "value", "float32 [B, T, 32]", "float64 [2, 8, 32]"),
    "rank": ("InputError", "value", "[8, 32]"),
    "width": ("InputError", "value", "[2, 8, 16]"),
    "sizes": ("InputError", "axis B", "2 in 'value'", "1 in 'length'"),
    "extra": ("InputError", "query"),
    "missing": ("InputError", "expected inputs", "endpoints"),
    "too long": ("InputError", "'value' [2, 25, 32]", "[1, 1, 32] to [4, 24, 32]", "--profiles"),
    "empty": ("InputError", "'reference' [2, 0, 2]", "[1, 1, 2] to [2, 5, 2]"),
    "unaligned": ("InputError", "value", "multiple of 256"),
    "foreign": ("InputError", "value", "expected memory of GPU 0", "got GPU 1"),
    "transposed": ("InputError", "value", "contiguous", "[1024, 128, 4]", "[4, 64, 8]"),
    "host": ("InputError", "value", "numpy array"),
    "closed": ("SessionError", "head.plan", "closed"),
    "closed warm-up": ("SessionError", "head.plan", "closed"),
}


def test_bad_inputs_are_named(tensorrt, plan):
    said = tensorrt.call(in_process_bad_inputs, plan)
    for name, words in BAD_INPUTS.items():
        assert all(word in said[name] for word in words), (name, said[name])
    assert float(said["strided"]) < TOLERANCE
    assert said["left"] == "0"


# ---------------------------------------------------------------- failures on the device


def in_process_out_of_memory(plan: str) -> dict[str, Any]:
    session, device = opened(plan)
    small = worst(session, *SMALL)
    device.limit = sum(device.live.values()) + 10_000
    said: dict[str, Any] = {"small": small, "error": message(lambda: session.run(engine_inputs(*LARGE)))}
    said["left"] = len(device.live)
    said["small again"] = worst(session, *SMALL)
    device.limit = sum(device.live.values())
    said["output"] = message(lambda: session.run_on_device(engine_inputs(*SMALL)))
    device.limit = 1 << 30
    said["large"] = [worst(session, *LARGE) for _ in range(3)]
    session.close()
    said["closed"] = [len(device.live), device.open_graphs]
    return said


def test_out_of_memory_leaves_the_session_usable(tensorrt, plan):
    said = tensorrt.call(in_process_out_of_memory, plan)
    assert all(
        word in said["error"]
        for word in ("OutOfDeviceMemory", "head.plan", "value [4, 24, 32]", "MiB", "fewer workers", "--profiles")
    )
    assert "output 'out'" in said["output"]
    assert said["left"] == 0
    assert max(said["small"], said["small again"], *said["large"]) < TOLERANCE
    assert said["closed"] == [0, 0]


def in_process_no_capture(plan: str) -> dict[str, Any]:
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("sdst.tensorrt").addHandler(handler)
    session, device = opened(plan, device=HostDevice(captures=False), workers=2)
    errors = [worst(session, *shape, seed) for seed in range(4) for shape in SHAPES]
    return {"errors": errors, "lines": lines, "tries": [call for call, _ in device.calls].count("capture")}


def test_a_failed_capture_is_logged_once_and_kernels_run_one_by_one(tensorrt, plan):
    said = tensorrt.call(in_process_no_capture, plan)
    assert max(said["errors"]) < TOLERANCE
    (line,) = said["lines"]
    assert "head.plan" in line
    assert "captures nothing" in line
    assert said["tries"] == 1


def in_process_few_contexts(plan: str) -> dict[str, Any]:
    """TensorRT has memory for two contexts with graphs, later for none, then for many."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("sdst.tensorrt").addHandler(handler)
    session, device = opened(plan)
    most, real = [2], lane.make_context

    def make_context(*arguments: Any) -> Any:
        if device.calls and device.open_graphs >= most[0]:  # the bucket's own is made before any call
            raise DeviceError("TensorRT made no execution context: no memory")
        return real(*arguments)

    lane.make_context = make_context
    said: dict[str, Any] = {"errors": []}
    for most[0] in (2, 0, 100):
        del device.calls[1:]
        said["errors"] += [worst(session, 1, T, 1) for _ in range(10) for T in range(1, 5)]
        calls = [call for call, _ in device.calls]
        said[str(most[0])] = [calls.count("capture"), calls.count("launch"), device.open_graphs]
    session.close()
    return said | {"lines": lines, "left": [len(device.live), device.open_graphs]}


def test_without_memory_for_a_graph_kernels_run_one_by_one(tensorrt, plan):
    said = tensorrt.call(in_process_few_contexts, plan)
    assert max(said["errors"]) < TOLERANCE
    assert said["2"] == [4, 3 + 8 * 2, 2]  # two that had to go, then the two that stay
    assert said["0"] == [0, 0, 0]
    assert said["100"] == [4, 4 + 3, 1]  # graphs work again, of one shape at a time until close()
    assert [line.split(",")[0] for line in said["lines"]] == [f"head.plan: keeps {n} CUDA graphs" for n in (2, 1, 0)]
    assert said["left"] == [0, 0]


def in_process_loggers(plan: str) -> dict[str, Any]:
    """Two sessions' logger, and who is told of another thread's error."""
    trt = load_tensorrt()
    sessions = [opened(plan)[0] for _ in range(2)]
    loggers = {id(each.parts.logger) for session in sessions for each in session._pool.close()}
    logger, told = shared_logger(trt), []

    def fail() -> None:
        logger.log(trt.ILogger.Severity.ERROR, "the other thread's")
        started.set()
        asked.wait()
        told.append(take_errors(logger))

    started, asked = threading.Event(), threading.Event()
    thread = threading.Thread(target=fail)
    thread.start()
    started.wait()
    told.append(take_errors(logger))
    asked.set()
    thread.join()
    return {"one": loggers == {id(logger)}, "told": told}


def test_a_process_has_one_logger_that_tells_a_thread_its_own_errors(tensorrt, plan):
    said = tensorrt.call(in_process_loggers, plan)
    assert said == {"one": True, "told": ["TensorRT logged no reason", "the other thread's"]}


def in_process_plugin_refuses(plan: str) -> dict[str, Any]:
    """An sdst::RDSA node that fails; then good inputs."""
    session, _ = opened(plan)
    session.run(engine_inputs(*SMALL))
    streams = HostStream.handle
    HostStream.handle = 256  # the host library takes none but 0
    bad = [message(lambda: session.run(engine_inputs(*SMALL))) for _ in range(2)]
    HostStream.handle = streams
    return {"bad": bad, "good": [worst(session, *SMALL) for _ in range(3)]}


def test_what_tensorrt_logged_is_told(tensorrt, plan):
    said = tensorrt.call(in_process_plugin_refuses, plan)
    for words in said["bad"]:
        assert words.startswith("DeviceError: head.plan: TensorRT refused to run: enqueueV3: plugin RDSA of node")
    assert max(said["good"]) < TOLERANCE
