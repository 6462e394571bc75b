"""Parts of the TensorRT session that need no TensorRT: DLPack, CUDA graphs over a stub of the driver, pool, sidecar."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import json
import shutil
import subprocess
import threading
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock, call

import numpy as np
import pytest
import torch
from engine_files import plan_bytes, sidecar
from host_device import HostDevice

from sdst_runtime.errors import ContractError, DependencyError, DeviceError, InputError
from sdst_runtime.sessions.tensorrt import dlpack
from sdst_runtime.sessions.tensorrt.compat import make_context, version_numbers
from sdst_runtime.sessions.tensorrt.cuda_graphs import CudaDriver
from sdst_runtime.sessions.tensorrt.device import CaptureError, OutOfDeviceMemory
from sdst_runtime.sessions.tensorrt.dlpack import DeviceArray, is_on_device, read_tensor
from sdst_runtime.sessions.tensorrt.pool import Pool
from sdst_runtime.sessions.tensorrt.sidecar import read_sidecar, sidecar_path, write_sidecar

TYPES = ("float32", "float16", "int64", "int32", "uint8", "bool")


@pytest.fixture
def device():
    device = HostDevice()
    with device.current():
        yield device


def device_array(device: HostDevice, values: np.ndarray) -> DeviceArray:
    memory = device.allocate(values.nbytes)
    memory.bytes[: values.nbytes] = values.reshape(-1).view(np.uint8)
    return DeviceArray(memory, values.dtype, values.shape, device.dlpack_device)


def aligned_tensor(values: torch.Tensor) -> torch.Tensor:
    """A copy at an address that TensorRT takes."""
    memory = torch.empty(values.nbytes + 256, dtype=torch.uint8)
    start = -memory.data_ptr() % 256
    copy = memory[start : start + values.nbytes].view(values.dtype).view(values.shape)
    return copy.copy_(values)


# ---------------------------------------------------------------- DLPack


@pytest.mark.parametrize("dtype", TYPES)
def test_torch_and_numpy_read_an_output_where_it_lies(device, dtype):
    values = np.arange(24).reshape(2, 3, 4).astype(dtype)
    array = device_array(device, values)
    by_torch, by_numpy = torch.from_dlpack(array), np.from_dlpack(array)
    np.testing.assert_array_equal(by_torch.numpy(), values)
    np.testing.assert_array_equal(by_numpy, values)
    assert by_torch.data_ptr() == by_numpy.ctypes.data == array.__cuda_array_interface__["data"][0]


def test_memory_lives_as_long_as_somebody_reads_it(device):
    array = device_array(device, np.ones(5, np.float32))
    reader, unread = torch.from_dlpack(array), array.__dlpack__()
    del array
    gc.collect()
    assert len(device.live) == 1
    del reader
    gc.collect()
    assert len(device.live) == 1  # the capsule that nobody took
    del unread
    gc.collect()
    assert device.live == {}
    assert dlpack._exported == {}


@pytest.mark.parametrize("dtype", TYPES)
def test_a_tensor_of_torch_is_read_where_it_lies(device, dtype):
    tensor = aligned_tensor(torch.arange(24).reshape(2, 3, 4).to(getattr(torch, dtype)))
    assert is_on_device(tensor, device)
    read = read_tensor("value", tensor, device, device.stream())
    assert (read.address, read.dtype, read.shape) == (tensor.data_ptr(), np.dtype(dtype), (2, 3, 4))
    assert read.ndim == 3


def test_numpy_arrays_are_not_on_the_device(device):
    assert not is_on_device(np.zeros(3), device)
    assert not is_on_device([1.0, 2.0], device)


def test_tensors_that_tensorrt_cannot_read_are_refused(device):
    tensor, stream = aligned_tensor(torch.zeros(4, 128)), device.stream()
    for bad, words in (
        (tensor.t(), r"'value'.*contiguous.*\[4, 1\], got \[1, 128\]"),
        (tensor[:, :64], r"'value'.*contiguous.*\[64, 1\], got \[128, 1\]"),
        (tensor.view(-1)[32:], "'value'.*multiple of 256"),
        (aligned_tensor(torch.zeros(4, dtype=torch.bfloat16)), "'value'.*DLPack type 4"),
    ):
        with pytest.raises(InputError, match=words):
            read_tensor("value", bad, device, stream)
    one_row = tensor[:1].t().contiguous().t()  # its strides differ only where there is one of a kind
    assert read_tensor("value", aligned_tensor(one_row), device, stream).shape == (1, 128)


# ---------------------------------------------------------------- CUDA graphs

STUB = """
#include <stdio.h>
#include <string.h>
static char log_[4096];
static int fail_, error_;
static int note(const char* name, int code) {
    strcat(log_, name); strcat(log_, " "); return fail_ == code ? error_ : 0; }
const char* calls(void) { return log_; }
void begin(int fail, int error) { log_[0] = 0; fail_ = fail; error_ = error; }
int cuStreamBeginCapture_v2(void* stream, int mode) {
    return note(stream == (void*)5 && mode == 1 ? "begin" : "?", 1); }
int cuStreamEndCapture(void* stream, void** graph) { *graph = (void*)16; return note("end", 2); }
int cuGraphInstantiateWithFlags(void** exec, void* graph, unsigned long long flags) {
    *exec = (void*)32; return note(graph == (void*)16 && flags == 0 ? "instantiate" : "?", 3); }
int cuGraphLaunch(void* exec, void* stream) {
    return note(exec == (void*)32 && stream == (void*)5 ? "launch" : "?", 4); }
int cuGraphExecDestroy(void* exec) { return note(exec == (void*)32 ? "destroy-exec" : "?", 0); }
int cuGraphDestroy(void* graph) { return note(graph == (void*)16 ? "destroy-graph" : "?", 0); }
int cuStreamSynchronize(void* stream) { return note("synchronize", 5); }
int cuPointerGetAttribute(void* data, int attribute, unsigned long long pointer) {
    if (attribute == 2) *(unsigned*)data = pointer > 1000 ? 2 : 1; else *(int*)data = 3;
    return note("attribute", 6); }
int cuGetErrorString(int code, const char** words) {
    *words = code == 900 ? "capture unsupported" : code == 2 ? "out of memory" : 0; return 0; }
"""


class Stream:
    handle = 5


@pytest.fixture(scope="module")
def stub(tmp_path_factory) -> ctypes.CDLL:
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler, cc")
    folder = tmp_path_factory.mktemp("driver")
    (folder / "driver.c").write_text(STUB)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", "libdriver.so", "driver.c"], check=True, cwd=folder)
    library = ctypes.CDLL(str(folder / "libdriver.so"))
    library.calls.restype = ctypes.c_char_p
    return library


@pytest.fixture
def driver(stub) -> Callable[..., CudaDriver]:
    def failing_at(call: int = -1, error: int = 900) -> CudaDriver:
        stub.begin(call, error)
        return CudaDriver(stub._name)

    return failing_at


def test_a_graph_is_captured_launched_and_destroyed(stub, driver):
    worked: list[str] = []
    graph = driver().capture(Stream(), lambda: worked.append(stub.calls().decode()))
    graph.launch(Stream())
    graph.launch(Stream())
    graph.close()
    graph.close()
    assert worked == ["begin "]
    assert stub.calls().decode().split() == [
        "begin", "end", "instantiate", "destroy-graph", "launch", "launch", "destroy-exec",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fails", "calls"),
    [(1, ["begin"]), (2, ["begin", "end"]), (3, ["begin", "end", "instantiate", "destroy-graph"])],
)
def test_a_capture_that_fails_leaves_nothing(stub, driver, fails, calls):
    with pytest.raises(CaptureError, match=r"cu.*: capture unsupported"):
        driver(fails).capture(Stream(), lambda: None)
    assert stub.calls().decode().split() == calls


def test_a_graph_without_memory_is_not_a_failed_capture(stub, driver):
    """A failed capture turns graphs off for good, a lack of memory does not."""
    with pytest.raises(OutOfDeviceMemory, match="cuGraphInstantiateWithFlags: out of memory"):
        driver(3, 2).capture(Stream(), lambda: None)
    assert stub.calls().decode().split() == ["begin", "end", "instantiate", "destroy-graph"]


def test_work_that_fails_ends_the_capture(stub, driver):
    def work() -> None:
        raise DeviceError("TensorRT refused")

    with pytest.raises(DeviceError, match="TensorRT refused"):
        driver().capture(Stream(), work)
    assert stub.calls().decode().split() == ["begin", "end", "destroy-graph"]


def test_addresses_tell_their_device(driver):
    assert driver().device_of(4096) == 3
    with pytest.raises(DeviceError, match="0x10: expected memory of a GPU"):
        driver().device_of(16)
    with pytest.raises(DeviceError, match="cuStreamSynchronize: capture unsupported"):
        driver(5).synchronize_stream(7)


def test_an_old_or_missing_driver_is_named(tmp_path):
    with pytest.raises(DependencyError, match=r"driver of CUDA 11\.4 or newer"):
        CudaDriver(str(tmp_path / "absent.so"))


# ---------------------------------------------------------------- the pool


def closed() -> InputError:
    return InputError("closed")


def test_who_finds_none_free_waits():
    pool, order = Pool(["a"], closed), []
    waits = threading.Thread(target=lambda: _take(pool, order))
    with pool.one() as item:
        waits.start()
        order.append(f"had {item}")
        assert waits.is_alive()
    waits.join()
    assert order == ["had a", "took a"]


def test_closing_waits_for_the_busy_and_turns_away_the_waiting():
    pool, order, entered = Pool(["a"], closed), [], threading.Event()

    def late() -> None:
        entered.set()
        try:
            _take(pool, order)
        except InputError as error:
            order.append(str(error))

    with pool.one():
        threads = [threading.Thread(target=late), threading.Thread(target=lambda: order.append(pool.close()))]
        threads[0].start()
        entered.wait()
        threads[1].start()
        threads[0].join()
        assert order == ["closed"]
    threads[1].join()
    assert order == ["closed", ["a"]]
    assert pool.close() == []
    with pytest.raises(InputError, match="closed"):
        _take(pool, order)


def test_all_waits_until_none_is_in_use():
    pool, order = Pool(["a", "b"], closed), []

    def everything() -> None:
        with pool.all() as items:
            order.append(sorted(items))

    thread = threading.Thread(target=everything)
    with pool.one():
        thread.start()
        order.append("one")
    thread.join()
    assert order == ["one", ["a", "b"]]


def test_an_error_gives_the_item_back():
    pool = Pool(["a"], closed)
    with pytest.raises(ValueError, match="x"), pool.one():
        raise ValueError("x")
    with pool.one() as item:
        assert item == "a"


def _take(pool: Pool[str], order: list[Any]) -> None:
    with pool.one() as item:
        order.append(f"took {item}")


# ---------------------------------------------------------------- the sidecar


def test_a_sidecar_comes_back_as_it_was_written(tmp_path):
    plan, written = tmp_path / "head.plan", sidecar(plan_bytes())
    write_sidecar(plan, written)
    assert sidecar_path(plan) == tmp_path / "head.plan.json"
    assert read_sidecar(plan) == written


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("plan_bytes", "7", "plan_bytes"),
        ("kind", "tail", "kind"),
        ("surplus", 1, "surplus"),
        ("machine", {"tensorrt": "10.3.0"}, "machine.sm"),
        ("profiles", [{"value": {"min": [1], "opt": [1]}}], "profiles.0.value.max"),
    ],
)
def test_a_sidecar_is_read_strictly(tmp_path, field, value, words):
    plan = tmp_path / "head.plan"
    told = dataclasses.asdict(sidecar(plan_bytes())) | {field: value}
    sidecar_path(plan).write_text(json.dumps(told))
    with pytest.raises(ContractError, match=rf"head\.plan\.json: does not parse: {words}.*sdst build"):
        read_sidecar(plan)


def test_the_sidecar_tells_a_session_what_an_onnx_file_would():
    told = sidecar(plan_bytes())
    metadata = told.metadata()
    assert json.loads(metadata.pop("sdst.spec"))["backbone"] == "tiny"
    assert metadata == {
        "sdst.kind": "head", "sdst.precision": "fp32", "sdst.steps": "2", "sdst.max_clips": "24", "sdst.max_batch": "4",
    }  # fmt: skip
    text = dataclasses.replace(told, kind="text", steps=0, limits={}).metadata()
    assert text.keys() == {"sdst.spec", "sdst.kind", "sdst.precision"}


def test_versions_compare_as_numbers():
    assert version_numbers("10.16.1.11") == (10, 16, 1, 11)
    assert version_numbers("10.3.0") < version_numbers("10.16.1")
    assert version_numbers("11.4.0rc1") == (11, 4)


def test_a_context_is_on_its_profile_when_it_gets_memory():
    """The size is that of the profile; what TensorRT makes of another order only a GPU shows."""
    engine = Mock(num_optimization_profiles=2)
    context = make_context(Mock(), engine, None, 1, (4096, 512), 7)
    assert context.method_calls == [call.set_optimization_profile_async(1, 7), call.set_device_memory(4096, 512)]
