"""The GPU through pycuda: memory, streams, events and copies in the primary context, which torch shares.

pycuda is imported when the device is opened; CUDA graphs come from cuda_graphs.py.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DependencyError, DeviceError
from ..plugin_library import PluginDevice
from .cuda_graphs import CudaDriver, CudaGraph
from .device import CaptureError, DeviceFacts, OutOfDeviceMemory, aligned

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for the default stream
_DLPACK_CUDA = 2  # kDLCUDA
_DRIVER_VERSION = Path("/sys/module/nvidia/version")


@cache
def open_pycuda_device() -> PycudaDevice:
    """The GPU of this process ($CUDA_DEVICE, else the first). Raises DependencyError as PycudaDevice does."""
    return PycudaDevice()


class PycudaDevice:
    """device.Device by pycuda."""

    plugin_device: PluginDevice = "cuda"

    def __init__(self) -> None:
        """Raises DependencyError when pycuda, the driver or a GPU is missing."""
        try:
            driver: Any = importlib.import_module("pycuda.driver")
            primary: Any = importlib.import_module("pycuda.autoprimaryctx")
        except Exception as error:  # ImportError without pycuda or driver, pycuda's own errors without a GPU
            raise DependencyError(
                f"pycuda cannot be used ({error}): run  pip install pycuda  on a machine with an NVIDIA GPU and driver"
            ) from error
        self._driver = driver
        self._context: Any = primary.context
        self._cuda = CudaDriver()
        self.dlpack_device = (_DLPACK_CUDA, _ordinal(driver, primary.device))
        major, minor = primary.device.compute_capability()
        speaks = driver.get_driver_version()
        cuda = f"{speaks // 1000}.{speaks % 1000 // 10}"
        self.facts = DeviceFacts(primary.device.name(), f"{major}.{minor}", _driver_version() or f"CUDA {cuda}", cuda)

    @contextmanager
    def current(self) -> Iterator[None]:
        """pycuda's contexts belong to threads, so each thread pushes it."""
        self._context.push()
        try:
            yield
        except self._driver.Error as error:
            raise DeviceError(f"CUDA: {error}") from error
        finally:
            self._context.pop()

    def allocate(self, size: int) -> PycudaMemory:
        """At least one block of 256 bytes. Raises OutOfDeviceMemory."""
        return PycudaMemory(self, self._allocated(self._driver.mem_alloc, aligned(size)))

    def allocate_pinned(self, size: int) -> PycudaPinned:
        """Raises OutOfDeviceMemory."""
        return PycudaPinned(self._allocated(self._driver.pagelocked_empty, aligned(size), np.uint8))

    def memory_info(self) -> tuple[int, int]:
        """Free and all bytes."""
        return self._driver.mem_get_info()

    def stream(self) -> PycudaStream:
        """A stream that does not wait for the default stream."""
        return PycudaStream(self._driver.Stream(_NON_BLOCKING))

    def event(self) -> PycudaEvent:
        """An event without a time, which is cheaper."""
        return PycudaEvent(self._driver.Event(self._driver.event_flags.DISABLE_TIMING))

    def copy_to_device(self, target: int, source: np.ndarray, stream: PycudaStream) -> None:
        """Queue a copy from pinned memory."""
        self._driver.memcpy_htod_async(target, source, stream.stream)

    def copy_to_host(self, target: np.ndarray, source: int, stream: PycudaStream) -> None:
        """Queue a copy to pinned memory."""
        self._driver.memcpy_dtoh_async(target, source, stream.stream)

    def copy_on_device(self, target: int, source: int, size: int, stream: PycudaStream) -> None:
        """Queue a copy."""
        self._driver.memcpy_dtod_async(target, source, size, stream.stream)

    def device_of(self, address: int) -> int:
        """Number of the device of an address. Raises DeviceError for one of the host."""
        return self._cuda.device_of(address)

    def synchronize_stream(self, handle: int) -> None:
        """Wait for a stream of somebody else's."""
        self._cuda.synchronize_stream(handle)

    def capture(self, stream: PycudaStream, work: Callable[[], None]) -> CudaGraph:
        """A graph of what `work` queues. Raises CaptureError."""
        try:
            return self._cuda.capture(stream, work)
        except self._driver.Error as error:
            raise CaptureError(f"CUDA: {error}") from error

    def _allocated(self, allocate: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return allocate(*arguments)
        except self._driver.MemoryError as error:
            raise OutOfDeviceMemory(f"CUDA: {error}") from error


class PycudaMemory:
    """A block on the GPU."""

    def __init__(self, device: PycudaDevice, allocation: Any) -> None:
        self._device, self._allocation = device, allocation
        self.address = int(allocation)

    def free(self) -> None:
        """Give it back, from any thread; a second call does nothing."""
        allocation, self._allocation = self._allocation, None
        if allocation is not None:
            with self._device.current():
                allocation.free()


class PycudaPinned:
    """A page-locked block of the host."""

    def __init__(self, array: np.ndarray) -> None:
        self.bytes = array
        self._allocation: Any = array.base

    def free(self) -> None:
        """Give it back; a second call does nothing. Views of `bytes` must be gone."""
        allocation, self._allocation = self._allocation, None
        if allocation is not None:
            self.bytes = np.empty(0, np.uint8)
            allocation.free()


class PycudaStream:
    """A stream."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.handle: int = stream.handle

    def wait(self, event: PycudaEvent) -> None:
        """What is queued after this starts when the event has happened."""
        self.stream.wait_for_event(event.event)

    def synchronize(self) -> None:
        """Wait until all its work is done; other threads run meanwhile."""
        self.stream.synchronize()


class PycudaEvent:
    """An event."""

    def __init__(self, event: Any) -> None:
        self.event = event

    def record(self, stream: PycudaStream) -> None:
        """Let it happen when the work queued so far is done."""
        self.event.record(stream.stream)


def _ordinal(driver: Any, device: Any) -> int:
    """pycuda's devices do not tell their number; the bus tells them apart."""
    wanted = device.pci_bus_id()
    return next(number for number in range(driver.Device.count()) if driver.Device(number).pci_bus_id() == wanted)


def _driver_version() -> str:
    try:
        return _DRIVER_VERSION.read_text().strip()
    except OSError:  # on Jetson the driver is part of the kernel
        return ""
