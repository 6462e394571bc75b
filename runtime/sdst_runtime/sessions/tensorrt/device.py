"""What a TensorRT session wants of a GPU: memory, streams, events, copies and graphs, as one small protocol.

pycuda_device.py implements it; tests have a double in host memory. Addresses are integers, sizes bytes. All calls but
`current` are made inside `with device.current()`, from any thread. Streams and events go to the device that made them,
hence `Any` where they are arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ...errors import DeviceError
from ..plugin_library import PluginDevice

ALIGNMENT = 256  # bytes, of every tensor's address: NvInferRuntime.h


class OutOfDeviceMemory(DeviceError):
    """The GPU, or the host's memory for copies to it, has less room than is needed."""


class CaptureError(DeviceError):
    """Work on a stream could not be made a graph."""


@dataclass(frozen=True)
class DeviceFacts:
    """Which GPU it is."""

    gpu: str
    sm: str  # compute capability, "8.7"
    driver: str
    cuda: str  # newest CUDA that the driver speaks


class Memory(Protocol):
    """A block on the device, its address a multiple of ALIGNMENT."""

    @property
    def address(self) -> int: ...

    def free(self) -> None:
        """Give it back, from any thread; a second call does nothing."""
        ...


class PinnedMemory(Protocol):
    """A block of the host that copies to and from the device reach directly."""

    @property
    def bytes(self) -> np.ndarray:
        """The block, uint8."""
        ...

    def free(self) -> None: ...


class Stream(Protocol):
    """A queue of work."""

    @property
    def handle(self) -> int:
        """The cudaStream_t."""
        ...

    def wait(self, event: Any) -> None:
        """What is queued after this starts when the event has happened."""
        ...

    def synchronize(self) -> None: ...


class Event(Protocol):
    """A point in a stream's work."""

    def record(self, stream: Any) -> None: ...


class Graph(Protocol):
    """Captured work, started by one call."""

    def launch(self, stream: Any) -> None: ...

    def close(self) -> None: ...


class Device(Protocol):
    """One GPU. Every method may raise DeviceError."""

    @property
    def facts(self) -> DeviceFacts: ...

    @property
    def plugin_device(self) -> PluginDevice:
        """Which build of the plugin library computes on its addresses."""
        ...

    @property
    def dlpack_device(self) -> tuple[int, int]:
        """DLPack's type and number of the device."""
        ...

    def current(self) -> AbstractContextManager[None]:
        """Calls of this thread go to this device within the block."""
        ...

    def allocate(self, size: int) -> Memory:
        """Raises OutOfDeviceMemory."""
        ...

    def allocate_pinned(self, size: int) -> PinnedMemory:
        """Raises OutOfDeviceMemory."""
        ...

    def memory_info(self) -> tuple[int, int]:
        """Free and all bytes."""
        ...

    def stream(self) -> Stream: ...

    def event(self) -> Event: ...

    def copy_to_device(self, target: int, source: np.ndarray, stream: Any) -> None:
        """Queue a copy from pinned memory."""
        ...

    def copy_to_host(self, target: np.ndarray, source: int, stream: Any) -> None:
        """Queue a copy to pinned memory."""
        ...

    def copy_on_device(self, target: int, source: int, size: int, stream: Any) -> None: ...

    def device_of(self, address: int) -> int:
        """Number of the device that an address belongs to; raises DeviceError for one of the host."""
        ...

    def synchronize_stream(self, handle: int) -> None:
        """Wait for a stream of somebody else's, given its cudaStream_t."""
        ...

    def capture(self, stream: Any, work: Callable[[], None]) -> Graph:
        """A graph of what `work` queues on the stream; it does not run. Raises CaptureError or OutOfDeviceMemory."""
        ...


def aligned(size: int) -> int:
    """`size` in whole blocks of ALIGNMENT, at least one."""
    return max(1, -(-size // ALIGNMENT)) * ALIGNMENT
