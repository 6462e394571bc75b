"""One worker's share of a TensorRT engine: its streams, memory, execution contexts and CUDA graphs.

A lane runs one call at a time. A *bucket* is what it holds for one optimisation profile: pinned and device memory for
the largest tensors of the profile, allocated once, and the contexts' working memory. Inputs are copied to the device on
one stream while the other may still compute for other lanes; events order the two.

The first call of some shapes enqueues the engine's kernels one by one; the second captures them as a CUDA graph, in a
context that nothing else touches, for a graph holds addresses and the context's state. Source: TensorRT's
documentation on CUDA graphs. When a lane has all the graphs it may keep, shapes run one by one CALLS_FOR_A_PLACE times
before they take the place of another's: a capture costs many calls, and shapes that take turns would capture at each.
Where memory for a further graph is lacking, the lane keeps no more than went well, and runs the rest one by one.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import DeviceError
from ..base import TensorInfo
from .compat import LOGGER, make_context, scratch_bytes, take_errors
from .device import CaptureError, Device, Graph, Memory, OutOfDeviceMemory, PinnedMemory, Stream, aligned
from .dlpack import DeviceArray, DeviceTensor
from .sidecar import Profile

MOST_GRAPHS = 16  # of a lane; the one used longest ago goes first
CALLS_FOR_A_PLACE = 8  # one by one, before shapes take the place of another's graph
MOST_SEEN = 256  # sets of shapes of which a lane remembers how often they ran one by one

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Input = np.ndarray | DeviceTensor
Key = tuple[int, tuple[tuple[Shape, int | None], ...]]  # profile, shapes and addresses of the caller's


@dataclass(frozen=True)
class EngineParts:
    """What all lanes of a session share."""

    name: str  # of the file, for messages
    trt: Any
    logger: Any
    engine: Any
    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]
    profiles: tuple[Profile, ...]
    device: Device
    no_graphs: threading.Event  # set when CUDA graphs are not wanted or do not work
    making: threading.Lock  # held while a context is made: an engine promises that to one thread at a time
    runtime_config: Callable[[], Any] | None = None  # of TensorRT for RTX: what a context is made with


class Lane:
    """Runs an engine for one caller at a time. All methods are called inside `device.current()`."""

    def __init__(self, parts: EngineParts) -> None:
        self.parts = parts
        device = parts.device
        self.compute, self.copies = device.stream(), device.stream()
        self._arrived, self._computed = device.event(), device.event()
        self._buckets: dict[int, _Bucket] = {}
        self._graphs: OrderedDict[Key, _Captured] = OrderedDict()
        self._seen: OrderedDict[Key, int] = OrderedDict()  # calls one by one since there was a graph
        self._most_graphs = MOST_GRAPHS

    def run(self, profile: int, inputs: Mapping[str, Input]) -> dict[str, np.ndarray]:
        """Outputs on the host. Raises DeviceError; the lane is then usable as before."""
        with _settled(self):
            bucket, shapes = self._compute(profile, inputs)
            self._computed.record(self.compute)
            self.copies.wait(self._computed)
            views = {name: bucket.host(name, shape, self.parts.outputs[name].dtype) for name, shape in shapes.items()}
            for name, view in views.items():
                self.parts.device.copy_to_host(view, bucket.address(name), self.copies)
            self.copies.synchronize()
            return {name: view.copy() for name, view in views.items()}

    def run_on_device(self, profile: int, inputs: Mapping[str, Input]) -> dict[str, DeviceArray]:
        """Outputs in device memory of their own. Raises DeviceError; the lane is then usable as before."""
        device, arrays = self.parts.device, {}
        with _settled(self):
            bucket, shapes = self._compute(profile, inputs)
            for name, shape in shapes.items():
                dtype = self.parts.outputs[name].dtype
                size = math.prod(shape) * dtype.itemsize
                memory = _allocated(self.parts, device.allocate, size, f"output {name!r}")
                arrays[name] = DeviceArray(memory, dtype, shape, device.dlpack_device)
                device.copy_on_device(memory.address, bucket.address(name), size, self.compute)
            self.compute.synchronize()
        return arrays

    def close(self) -> None:
        """Give back graphs, contexts and memory; the lane makes them anew when it runs again."""
        self._seen.clear()
        self._most_graphs = MOST_GRAPHS
        self._close_graphs(down_to=0)
        while self._buckets:
            self._buckets.popitem()[1].free()

    def settle(self) -> None:
        """Wait for all that is queued, whatever became of it."""
        for stream in (self.copies, self.compute):
            with suppress(DeviceError):
                stream.synchronize()

    def _compute(self, profile: int, inputs: Mapping[str, Input]) -> tuple[_Bucket, dict[str, Shape]]:
        """Queue copies and kernels. Returns the bucket in which the outputs will lie, and their shapes."""
        bucket = self._buckets.get(profile) or self._open_bucket(profile)
        key = _key(profile, inputs)
        self._send(bucket, inputs)
        captured = self._graphs.get(key) or self._try_capture(bucket, key, inputs)
        if captured is not None:
            self._graphs.move_to_end(key)
            captured.graph.launch(self.compute)
            return bucket, captured.outputs
        shapes = self._bind(bucket.context, bucket, inputs)
        self._enqueue(bucket.context)
        self._remember(key)
        return bucket, shapes

    def _send(self, bucket: _Bucket, inputs: Mapping[str, Input]) -> None:
        """Copy the host's inputs; while one travels the next is laid into pinned memory."""
        for name, value in inputs.items():
            if isinstance(value, np.ndarray):
                staged = bucket.host(name, value.shape, value.dtype)
                np.copyto(staged, value)
                self.parts.device.copy_to_device(bucket.address(name), staged, self.copies)
        self._arrived.record(self.copies)
        self.compute.wait(self._arrived)

    def _bind(self, context: Any, bucket: _Bucket, inputs: Mapping[str, Input]) -> dict[str, Shape]:
        """Set shapes and addresses; returns the outputs' shapes."""
        for name, value in inputs.items():
            address = value.address if isinstance(value, DeviceTensor) else bucket.address(name)
            if not (context.set_input_shape(name, value.shape) and context.set_tensor_address(name, address)):
                raise self._refusal(f"input {name!r} of shape {list(value.shape)}")
        shapes = {}
        for name in self.parts.outputs:
            shapes[name] = tuple(context.get_tensor_shape(name))
            if not context.set_tensor_address(name, bucket.address(name)):
                raise self._refusal(f"the address of output {name!r}")
        return shapes

    def _enqueue(self, context: Any) -> None:
        if not context.execute_async_v3(self.compute.handle):
            raise self._refusal("to run")

    def _try_capture(self, bucket: _Bucket, key: Key, inputs: Mapping[str, Input]) -> _Captured | None:
        """A graph for shapes that have run often enough; None for others and where graphs do not work."""
        enough = 1 if len(self._graphs) < self._most_graphs else CALLS_FOR_A_PLACE
        if self.parts.no_graphs.is_set() or self._seen.get(key, 0) < enough:
            return None
        try:
            self._close_graphs(down_to=max(self._most_graphs - 1, 0))
            captured = self._graphs[key] = self._capture(bucket, inputs)
        except CaptureError as error:
            self.parts.no_graphs.set()
            LOGGER.warning("%s: runs without CUDA graphs, as one could not be captured: %s", self.parts.name, error)
            return None
        except DeviceError as error:
            self._keep_fewer_graphs(error)
            return None
        finally:
            self._seen.pop(key, None)
        return captured

    def _capture(self, bucket: _Bucket, inputs: Mapping[str, Input]) -> _Captured:
        """Raises CaptureError when CUDA or TensorRT refuses to capture, DeviceError when memory lacks or it fails."""
        context = bucket.make_context()
        shapes = self._bind(context, bucket, inputs)
        self._enqueue(context)  # what TensorRT does once for new shapes cannot be captured
        self.compute.synchronize()
        try:
            graph = self.parts.device.capture(self.compute, lambda: self._enqueue(context))
        except OutOfDeviceMemory:
            raise
        except DeviceError as error:
            raise CaptureError(str(error)) from error
        return _Captured(graph, context, shapes)

    def _keep_fewer_graphs(self, error: DeviceError) -> None:
        """Make room for the calls one by one, which tell what is wrong if it was not the graph's memory."""
        self.settle()
        if self._most_graphs > 0:  # else it was said before
            self._most_graphs = min(self._most_graphs, len(self._graphs))
            LOGGER.warning("%s: keeps %d CUDA graphs, no more: %s", self.parts.name, self._most_graphs, error)
        self._close_graphs(down_to=0)

    def _close_graphs(self, down_to: int) -> None:
        """Close those used longest ago."""
        while len(self._graphs) > down_to:
            self._graphs.popitem(last=False)[1].graph.close()

    def _remember(self, key: Key) -> None:
        self._seen[key] = self._seen.get(key, 0) + 1
        self._seen.move_to_end(key)
        while len(self._seen) > MOST_SEEN:
            self._seen.popitem(last=False)

    def _open_bucket(self, profile: int) -> _Bucket:
        bucket = self._buckets[profile] = _Bucket(self.parts, profile, self.compute)
        return bucket

    def _refusal(self, what: str) -> DeviceError:
        return DeviceError(f"{self.parts.name}: TensorRT refused {what}: {take_errors(self.parts.logger)}")


@dataclass(frozen=True)
class _Captured:
    graph: Graph
    context: Any  # the graph uses its state
    outputs: dict[str, Shape]


class _Bucket:
    """Memory for the largest tensors of one profile, and the context that runs them one by one."""

    def __init__(self, parts: EngineParts, profile: int, stream: Stream) -> None:
        """Raises OutOfDeviceMemory, having kept nothing."""
        self._parts, self._profile, self._stream = parts, profile, stream
        with ExitStack() as undo:
            self._scratch_bytes = scratch_bytes(parts.engine, profile)
            what = f"the bucket of {_text(parts.profiles[profile])}"
            self._scratch: Memory = _allocated(parts, parts.device.allocate, self._scratch_bytes, what)
            undo.callback(self._scratch.free)
            self.context: Any = self.make_context()
            self._offsets, size = self._layout()
            self._device: Memory = _allocated(parts, parts.device.allocate, size, what)
            undo.callback(self._device.free)
            self._host: PinnedMemory = _allocated(parts, parts.device.allocate_pinned, size, what)
            undo.pop_all()

    def make_context(self) -> Any:
        """A context on this profile. All of a lane share their working memory: they run one after the other."""
        parts, scratch = self._parts, (self._scratch.address, self._scratch_bytes)
        with parts.making:
            how = None if parts.runtime_config is None else parts.runtime_config()
            return make_context(parts.trt, parts.engine, parts.logger, self._profile, scratch, self._stream.handle, how)

    def address(self, name: str) -> int:
        """Where a tensor lies on the device."""
        return self._device.address + self._offsets[name]

    def host(self, name: str, shape: Shape, dtype: np.dtype[Any]) -> np.ndarray:
        """The pinned memory of a tensor, as an array."""
        start = self._offsets[name]
        return self._host.bytes[start : start + math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)

    def free(self) -> None:
        """Give the memory back."""
        self.context = None
        for memory in (self._scratch, self._device, self._host):
            memory.free()

    def _layout(self) -> tuple[dict[str, int], int]:
        """Offset of each tensor at the largest shapes of the profile, and the bytes of all."""
        ranges = self._parts.profiles[self._profile]
        for name in self._parts.inputs:
            self.context.set_input_shape(name, ranges[name].max)
        largest = {name: ranges[name].max for name in self._parts.inputs}
        largest |= {name: tuple(self.context.get_tensor_shape(name)) for name in self._parts.outputs}
        offsets, size = {}, 0
        for name, shape in largest.items():
            if min(shape, default=1) < 0:
                raise DeviceError(f"{self._parts.name}: {name!r} has a shape that depends on values; export anew")
            info = self._parts.inputs.get(name) or self._parts.outputs[name]
            offsets[name] = size
            size += aligned(math.prod(shape) * info.dtype.itemsize)
        return offsets, size


@contextmanager
def _settled(lane: Lane) -> Iterator[None]:
    """After a failure nothing of the lane is under way, and when memory ran out the lane keeps none."""
    try:
        yield
    except BaseException as error:
        lane.settle()
        if isinstance(error, OutOfDeviceMemory):
            lane.close()
        raise


def _allocated(parts: EngineParts, allocate: Callable[[int], Any], size: int, what: str) -> Any:
    try:
        return allocate(size)
    except OutOfDeviceMemory as error:
        free, total = parts.device.memory_info()
        raise OutOfDeviceMemory(
            f"{parts.name}: out of memory: {what} needs {size / 2**20:.1f} MiB more, {free / 2**20:.0f} of"
            f" {total / 2**20:.0f} MiB are free ({error}); use fewer workers, or build with smaller --profiles"
        ) from error


def _key(profile: int, inputs: Mapping[str, Input]) -> Key:
    pairs = ((tuple(x.shape), x.address if isinstance(x, DeviceTensor) else None) for x in inputs.values())
    return profile, tuple(pairs)


def _text(profile: Profile) -> str:
    return ", ".join(f"{name} {list(shapes.max)}" for name, shapes in profile.items())
