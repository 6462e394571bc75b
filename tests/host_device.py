"""A double of the GPU for TensorRTSession: its memory is the host's, and every call is written down.

Copies and kernels run at once; a captured graph runs its work when it is launched. With the mock of
tests/mocked_tensorrt.py and the plugin's host library it computes real values.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from sdst_runtime.errors import DeviceError
from sdst_runtime.sessions.tensorrt.device import CaptureError, DeviceFacts, OutOfDeviceMemory, aligned


class HostDevice:
    """device.Device in host memory. `limit` bytes are its memory; `captures` says whether graphs can be captured."""

    plugin_device = "host"
    dlpack_device = (1, 0)  # kDLCPU, so that numpy and torch take its arrays

    def __init__(self, limit: int = 1 << 30, captures: bool = True) -> None:
        self.facts = DeviceFacts("Mock GPU", "8.7", "570.10", "12.6")
        self.limit, self.captures = limit, captures
        self.calls: list[tuple[str, str]] = []  # what was called, and on which stream
        self.live: dict[int, int] = {}  # bytes by address, pinned memory too
        self.allocations = 0
        self.open_graphs = 0
        self._lock = threading.Lock()
        self._made = 0
        self._here = threading.local()

    @contextmanager
    def current(self) -> Iterator[None]:
        self._here.depth = getattr(self._here, "depth", 0) + 1
        try:
            yield
        finally:
            self._here.depth -= 1

    def allocate(self, size: int) -> HostBlock:
        self.require_current()
        with self._lock:
            used = sum(self.live.values())
            if used + aligned(size) > self.limit:
                raise OutOfDeviceMemory(f"the double holds {used} of {self.limit} bytes")
            block = HostBlock(self, size)
            self.live[block.address] = aligned(size)
            self.allocations += 1
            return block

    allocate_pinned = allocate

    def memory_info(self) -> tuple[int, int]:
        return self.limit - sum(self.live.values()), self.limit

    def stream(self) -> HostStream:
        self.require_current()
        self._made += 1
        return HostStream(self, f"stream {self._made}")

    def event(self) -> HostEvent:
        self.require_current()
        return HostEvent()

    def copy_to_device(self, target: int, source: np.ndarray, stream: HostStream) -> None:
        self.write_down("to device", stream)
        _view(target, source.nbytes)[:] = source.reshape(-1).view(np.uint8)

    def copy_to_host(self, target: np.ndarray, source: int, stream: HostStream) -> None:
        self.write_down("to host", stream)
        target.reshape(-1).view(np.uint8)[:] = _view(source, target.nbytes)

    def copy_on_device(self, target: int, source: int, size: int, stream: HostStream) -> None:
        self.write_down("on device", stream)
        _view(target, size)[:] = _view(source, size)

    def device_of(self, address: int) -> int:
        if address == 0:
            raise DeviceError("address 0x0: expected memory of a GPU, it is the host's")
        return 0

    def synchronize_stream(self, handle: int) -> None:
        self.calls.append(("wait for a stream of others", str(handle)))

    def capture(self, stream: HostStream, work: Callable[[], None]) -> HostGraph:
        self.write_down("capture", stream)
        if not self.captures:
            raise CaptureError("the double captures nothing")
        self.open_graphs += 1
        return HostGraph(self, work)

    def write_down(self, call: str, stream: HostStream) -> None:
        self.require_current()
        self.calls.append((call, stream.name))

    def require_current(self) -> None:
        assert getattr(self._here, "depth", 0) > 0, "called where the device is not current"


class HostBlock:
    """Device or pinned memory."""

    def __init__(self, device: HostDevice, size: int) -> None:
        self._device, self._memory = device, np.empty(aligned(size) + 256, np.uint8)
        start = -self._memory.ctypes.data % 256
        self.bytes = self._memory[start : start + aligned(size)]
        self.address = self.bytes.ctypes.data

    def free(self) -> None:
        self._device.live.pop(self.address, None)


class HostEvent:
    """The stream that recorded it last."""

    def __init__(self) -> None:
        self.stream = ""

    def record(self, stream: HostStream) -> None:
        stream.device.write_down("record", stream)
        self.stream = stream.name


class HostStream:
    """A stream on which all is done already. Its handle is 0, which the plugin's host library wants."""

    handle = 0

    def __init__(self, device: HostDevice, name: str) -> None:
        self.device, self.name = device, name

    def wait(self, event: HostEvent) -> None:
        assert event.stream, "waits for an event that nobody recorded"
        self.device.write_down(f"wait for {event.stream}", self)

    def synchronize(self) -> None:
        self.device.write_down("synchronize", self)


class HostGraph:
    """Runs its work at each launch."""

    def __init__(self, device: HostDevice, work: Callable[[], None]) -> None:
        self._device, self._work = device, work

    def launch(self, stream: HostStream) -> None:
        self._device.write_down("launch", stream)
        self._work()

    def close(self) -> None:
        self._device.open_graphs -= 1


def _view(address: int, size: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
