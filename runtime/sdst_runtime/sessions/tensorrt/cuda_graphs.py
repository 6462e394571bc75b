"""CUDA graphs, which pycuda lacks: stream capture through the driver's library, libcuda, on pycuda's own streams.

libcuda is there wherever pycuda runs, under one name in all versions of CUDA, unlike libcudart. Source: CUDA driver
API, stream management and graph management; all functions below are in CUDA 11.4 to 13.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import c_char_p, c_int, c_uint, c_ulonglong, c_void_p
from typing import Any

from ...errors import DependencyError, DeviceError
from .device import CaptureError, OutOfDeviceMemory, Stream

LIBRARY = "libcuda.so.1"
THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may allocate meanwhile
_DEVICE_ORDINAL = 9  # CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
_MEMORY_TYPE = 2  # CU_POINTER_ATTRIBUTE_MEMORY_TYPE
_MEMORY_TYPE_DEVICE = 2  # CU_MEMORYTYPE_DEVICE
_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY

_FUNCTIONS = {
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, ctypes.POINTER(c_void_p)),
    "cuStreamSynchronize": (c_void_p,),
    "cuGraphInstantiateWithFlags": (ctypes.POINTER(c_void_p), c_void_p, c_ulonglong),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphExecDestroy": (c_void_p,),
    "cuGraphDestroy": (c_void_p,),
    "cuPointerGetAttribute": (c_void_p, c_int, c_ulonglong),
    "cuGetErrorString": (c_int, ctypes.POINTER(c_char_p)),
}


class CudaDriver:
    """The few functions of libcuda that pycuda does not offer."""

    def __init__(self, library: str = LIBRARY) -> None:
        """Raises DependencyError when the driver is missing or older than CUDA 11.4."""
        try:
            self._cuda: Any = ctypes.CDLL(library)
            for name, arguments in _FUNCTIONS.items():
                function = getattr(self._cuda, name)
                function.argtypes, function.restype = arguments, c_int
        except (OSError, AttributeError) as error:
            raise DependencyError(
                f"expected the driver of CUDA 11.4 or newer ({error}): install or update it"
            ) from error

    def capture(self, stream: Stream, work: Callable[[], None]) -> CudaGraph:
        """A graph of what `work` queues on the stream. Raises CaptureError or OutOfDeviceMemory; the stream is then
        usable as before.
        """
        self._capture_call("cuStreamBeginCapture_v2", stream.handle, THREAD_LOCAL)
        graph = c_void_p()
        try:
            work()
        except BaseException:
            self._cuda.cuStreamEndCapture(stream.handle, graph)
            self._destroy_graph(graph)
            raise
        self._capture_call("cuStreamEndCapture", stream.handle, graph)
        executable = c_void_p()
        try:
            self._capture_call("cuGraphInstantiateWithFlags", executable, graph, 0)
        finally:
            self._destroy_graph(graph)
        return CudaGraph(self, executable)

    def synchronize_stream(self, handle: int) -> None:
        """Wait for a stream. Raises DeviceError."""
        self.call("cuStreamSynchronize", handle)

    def device_of(self, address: int) -> int:
        """Number of the device an address lies on. Raises DeviceError when it is on none."""
        kind, ordinal = c_uint(), c_int(-1)
        self.call("cuPointerGetAttribute", ctypes.byref(kind), _MEMORY_TYPE, address)
        if kind.value != _MEMORY_TYPE_DEVICE:
            raise DeviceError(f"address {address:#x}: expected memory of a GPU, it is the host's")
        self.call("cuPointerGetAttribute", ctypes.byref(ordinal), _DEVICE_ORDINAL, address)
        return ordinal.value

    def call(self, function: str, *arguments: Any) -> None:
        """Raise DeviceError with the driver's words when the function fails, OutOfDeviceMemory when that is why."""
        status = getattr(self._cuda, function)(*arguments)
        if status == _OUT_OF_MEMORY:
            raise OutOfDeviceMemory(f"{function}: {self._words(status)}")
        if status:
            raise DeviceError(f"{function}: {self._words(status)}")

    def _capture_call(self, function: str, *arguments: Any) -> None:
        try:
            self.call(function, *arguments)
        except OutOfDeviceMemory:
            raise
        except DeviceError as error:
            raise CaptureError(str(error)) from error

    def _destroy_graph(self, graph: c_void_p) -> None:
        if graph:
            self._cuda.cuGraphDestroy(graph)

    def _words(self, status: int) -> str:
        words = c_char_p()
        self._cuda.cuGetErrorString(status, words)
        return words.value.decode() if words.value else f"CUDA error {status}"


class CudaGraph:
    """An executable graph."""

    def __init__(self, driver: CudaDriver, executable: c_void_p) -> None:
        self._driver, self._executable = driver, executable

    def launch(self, stream: Stream) -> None:
        """Queue the graph. Raises DeviceError."""
        self._driver.call("cuGraphLaunch", self._executable, stream.handle)

    def close(self) -> None:
        """Destroy the graph; a second call does nothing."""
        if self._executable:
            executable, self._executable = self._executable, c_void_p()
            self._driver.call("cuGraphExecDestroy", executable)
