"""Arrays on a device, in and out without a copy: `__dlpack__` and `__cuda_array_interface__`.

Sources: DLPack's dlpack.h (the unversioned DLManagedTensor), Numba's CUDA Array Interface, version 3. Strides in
DLPack count elements, those of the interface bytes.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Sequence
from ctypes import c_char_p, c_int, c_int32, c_int64, c_uint8, c_uint16, c_uint64, c_void_p, py_object
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import DeviceError, InputError
from .device import ALIGNMENT, Device, Memory, Stream


@dataclass(frozen=True)
class DeviceTensor:
    """Contiguous values on the session's device; `owner` keeps them alive."""

    address: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    owner: Any

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)


class DeviceArray:
    """An output that stays on the device, whole when it is handed out. Its memory is freed with it.

    torch.from_dlpack, cupy.from_dlpack and all that reads `__cuda_array_interface__` take it without a copy.
    """

    def __init__(self, memory: Memory, dtype: np.dtype[Any], shape: tuple[int, ...], device: tuple[int, int]) -> None:
        self.dtype, self.shape, self._device = dtype, shape, device
        self._memory = memory
        weakref.finalize(self, memory.free).atexit = False  # at exit the driver frees, and may be gone before us

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self._memory.address, False),
            "strides": None,
            "stream": None,  # nothing to wait for
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device

    def __dlpack__(self, *, stream: Any = None, **newer: Any) -> Any:
        """A capsule that keeps the memory alive. There is nothing to wait for, so `stream` does not matter."""
        return _make_capsule(self._memory.address, self.dtype, self.shape, self._device, self)


def is_on_device(value: Any, device: Device) -> bool:
    """Whether `value` is to be read where it lies, rather than as a numpy array."""
    if isinstance(value, np.ndarray):
        return False
    if hasattr(value, "__dlpack_device__"):
        kind, _ = value.__dlpack_device__()
        return kind in (device.dlpack_device[0], *_CUDA_KINDS)
    return hasattr(value, "__cuda_array_interface__")


def read_tensor(name: str, value: Any, device: Device, stream: Stream) -> DeviceTensor:
    """The values of a device array, ordered before what is queued on `stream` from now on.

    Raises InputError, naming the input, for one on another device, one that is not contiguous, and one whose address
    TensorRT does not take.
    """
    if hasattr(value, "__dlpack_device__"):
        where = tuple(value.__dlpack_device__())
        if where != device.dlpack_device:
            raise _foreign(name, where[1], device)
        tensor = _read_capsule(name, value.__dlpack__(stream=stream.handle or None))
    else:
        tensor = _read_interface(name, value, device)
    if tensor.address % ALIGNMENT:
        raise InputError(
            f"input {name!r}: expected an address that is a multiple of {ALIGNMENT}, got {tensor.address:#x}, a slice"
            " of something larger; give a copy of it"
        )
    return tensor


_CUDA_KINDS = (2, 13)  # kDLCUDA, kDLCUDAManaged
_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}  # DLDataTypeCode of numpy's kinds
_KINDS = {code: kind for kind, code in _CODES.items()}
_NAME = b"dltensor"


class _Tensor(ctypes.Structure):
    """DLTensor, with DLDevice and DLDataType written out."""

    _fields_ = (
        ("data", c_void_p), ("device_type", c_int32), ("device_id", c_int32), ("ndim", c_int32),
        ("code", c_uint8), ("bits", c_uint8), ("lanes", c_uint16),
        ("shape", ctypes.POINTER(c_int64)), ("strides", ctypes.POINTER(c_int64)), ("byte_offset", c_uint64),
    )  # fmt: skip


_Deleter = ctypes.CFUNCTYPE(None, c_void_p)


class _ManagedTensor(ctypes.Structure):
    """DLManagedTensor."""

    _fields_ = (("tensor", _Tensor), ("context", c_void_p), ("deleter", _Deleter))


_api = ctypes.pythonapi
_get_pointer = ctypes.PYFUNCTYPE(c_void_p, py_object, c_char_p)(("PyCapsule_GetPointer", _api))
_Destructor = ctypes.PYFUNCTYPE(None, c_void_p)
_new_capsule = ctypes.PYFUNCTYPE(py_object, c_void_p, c_char_p, _Destructor)(("PyCapsule_New", _api))
# A capsule that is being destroyed must not become a Python object again, so these two take its address.
_is_valid = ctypes.PYFUNCTYPE(c_int, c_void_p, c_char_p)(("PyCapsule_IsValid", _api))
_pointer_in = ctypes.PYFUNCTYPE(c_void_p, c_void_p, c_char_p)(("PyCapsule_GetPointer", _api))

_exported: dict[int, tuple[Any, ...]] = {}  # by address of the managed tensor: what must live as long


@_Deleter
def _release(managed: int) -> None:
    _exported.pop(managed, None)


@_Destructor
def _destroy(capsule: int) -> None:
    if _is_valid(capsule, _NAME):  # nobody took it: then the name would be another
        _exported.pop(_pointer_in(capsule, _NAME), None)


def _make_capsule(
    address: int, dtype: np.dtype[Any], shape: tuple[int, ...], device: tuple[int, int], owner: Any
) -> Any:
    axes = c_int64 * len(shape)
    sizes, strides = axes(*shape), axes(*(math.prod(shape[axis + 1 :]) for axis in range(len(shape))))
    tensor = _Tensor(
        address, *device, len(shape), _CODES[dtype.kind], dtype.itemsize * 8, 1,
        ctypes.cast(sizes, ctypes.POINTER(c_int64)), ctypes.cast(strides, ctypes.POINTER(c_int64)), 0,
    )  # fmt: skip
    managed = _ManagedTensor(tensor, None, _release)
    place = ctypes.addressof(managed)
    _exported[place] = (managed, sizes, strides, owner)
    return _new_capsule(place, _NAME, _destroy)


def _read_capsule(name: str, capsule: Any) -> DeviceTensor:
    """The capsule keeps the values alive, and its own destructor lets them go: it is read and never taken."""
    tensor = _ManagedTensor.from_address(_get_pointer(capsule, _NAME)).tensor
    kind = _KINDS.get(tensor.code)
    if kind is None or tensor.lanes != 1:
        raise InputError(
            f"input {name!r}: DLPack type {tensor.code} has no name in numpy; give float, half or integers"
        )
    dtype = np.dtype(f"{kind}{tensor.bits // 8}")
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    if tensor.strides:
        _require_contiguous(name, shape, [tensor.strides[axis] for axis in range(tensor.ndim)], 1)
    return DeviceTensor((tensor.data or 0) + tensor.byte_offset, dtype, shape, capsule)


def _read_interface(name: str, value: Any, device: Device) -> DeviceTensor:
    told = value.__cuda_array_interface__
    address, shape = told["data"][0], tuple(told["shape"])
    dtype = np.dtype(told["typestr"])
    if told.get("strides") is not None:
        _require_contiguous(name, shape, told["strides"], dtype.itemsize)
    try:
        number = device.device_of(address)
    except DeviceError as error:
        raise InputError(f"input {name!r}: {error}; give a numpy array or memory of the session's GPU") from error
    if number != device.dlpack_device[1]:
        raise _foreign(name, number, device)
    if told.get("stream") is not None:
        device.synchronize_stream(told["stream"])
    return DeviceTensor(address, dtype, shape, value)


def _require_contiguous(name: str, shape: Sequence[int], strides: Sequence[int], unit: int) -> None:
    expected = [unit * math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    if any(got != want for got, want, size in zip(strides, expected, shape, strict=True) if size > 1):
        raise InputError(
            f"input {name!r}: expected contiguous values, strides {expected}, got {list(strides)}; give its"
            " contiguous() copy"
        )


def _foreign(name: str, number: int, device: Device) -> InputError:
    return InputError(
        f"input {name!r}: expected memory of GPU {device.dlpack_device[1]}, where the session runs, got GPU {number};"
        " move it there"
    )
