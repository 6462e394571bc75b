"""The compiled op sdst::RDSA from Python: finds the library, checks it and calls its C API through ctypes.

Two libraries have the API of plugins/include/sdst/rdsa.h: one takes device pointers and a stream, one host pointers.
Shapes: B batch, T clips, M moments, H heads, P points, D depth, F = H * D, E = 3 * 2 * H * P.
Contract: plugins/README.md.
"""

from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

import numpy as np

from ..errors import ContractError, DependencyError, DeviceError, InputError
from ..files import sha256_file
from ..strict_json import load_json

PluginDevice = Literal["cuda", "host"]

API_VERSION = "1"
HOST_CODE = "SDST_ENGINE_HOST_CODE"  # of the environment: "1" lets code run that came with models
VARIABLE = "SDST_PLUGINS"  # of the environment: a library to use instead of all others
LIBRARIES: dict[PluginDevice, str] = {"cuda": "libsdst_plugins.so", "host": "libsdst_plugins_host.so"}
PACKAGE_FOLDER = Path(__file__).parents[1] / "lib"
DEPTHS = (16, 32, 64)  # what the op computes: these, with MOST_* plugins/src/rdsa_limits.h
MOST_HEADS, MOST_POINTS = 1 << 16, 16
TYPES = {"float32": 0, "float16": 1, "bfloat16": 2}  # enum sdst_type

_BUNDLE = "bundle"  # the name of a place
_BAD_ARGUMENT = 1  # enum sdst_status
_CHECKOUT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Place:
    """One place where a library may lie, and what the place is."""

    name: str
    path: Path


@dataclass(frozen=True)
class PluginInfo:
    """How a library was built, as it says itself, and which file it is."""

    path: Path
    sha256: str
    version: str
    device: PluginDevice
    cuda: str  # of the compiler; empty for the host library
    architectures: tuple[int, ...]  # of machine code; 90 is sm_90
    ptx: tuple[int, ...]  # what newer GPUs compile at first use
    tensorrt: str  # of the headers; empty when there is no TensorRT plugin in it


class RdsaProblem(ctypes.Structure):
    """One call of the op, `sdst_rdsa_problem`. Addresses are integers, strides count elements."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("value", "endpoints", "reference", "length", "out")),
        *((name, ctypes.c_int64) for name in ("batch", "clips", "moments")),
        *((name, ctypes.c_int32) for name in ("heads", "points", "depth", "type")),
        *((f"{name}_stride", ctypes.c_int64) for name in ("value_batch", "value_clip")),
        *((f"{name}_stride", ctypes.c_int64) for name in ("endpoints_batch", "endpoints_clip")),
    )


@dataclass(frozen=True)
class Brought:
    """The library that a folder of models brings along: it is code of whoever made the folder.

    It is loaded only when it is the file that `sha256` names, and then only when the same file is installed here or
    the user says so (`allowed`).
    """

    folder: Path
    sha256: str | None  # what bundle.json or a sidecar states; None: a library there is no part of the folder
    allowed: bool = field(default_factory=lambda: host_code_allowed())


def host_code_allowed() -> bool:
    """Whether the user lets code run that came with models: engines' host code, and a library beside them."""
    return os.environ.get(HOST_CODE) == "1"


def search_places(device: PluginDevice = "cuda", brought: Brought | None = None) -> list[Place]:
    """Where a library is looked for, in this order; $SDST_PLUGINS, when set, is the only place."""
    stated, name = os.environ.get(VARIABLE), LIBRARIES[device]
    if stated:
        return [Place(f"${VARIABLE}", Path(stated))]
    places = [Place("package", PACKAGE_FOLDER / name)]
    if (_CHECKOUT / "plugins" / "include" / "sdst" / "rdsa.h").is_file():
        places.append(Place("build folder", _CHECKOUT / "build" / name))
    if brought is None or brought.sha256 is None:
        return places
    return [*places, Place(_BUNDLE, Path(brought.folder) / name)]


def find_plugin_library(device: PluginDevice = "cuda", brought: Brought | None = None) -> Path:
    """The library that a folder brings, where an installed one is the same file or the user trusts it; else the first
    installed one. Nothing is loaded.

    Raises DependencyError when there is none, ContractError when a folder's own library is not what the folder states,
    and InputError when $SDST_PLUGINS names no file.
    """
    places = search_places(device, brought)
    there = [place for place in places if place.path.is_file()]
    own = next((place for place in there if place.name == _BUNDLE), None)
    installed = [place.path for place in there if place.name != _BUNDLE]
    if own is not None and brought is not None:
        _require_stated(own.path, brought)
        same = next((path for path in installed if sha256_file(path) == brought.sha256), None)
        if same is not None:
            return same
        if brought.allowed:
            return own.path
    if installed:
        return installed[0]
    if places[0].name == f"${VARIABLE}":
        raise InputError(f"{VARIABLE}={places[0].path}: expected a library, no such file; mend or unset the variable")
    command = "sdst plugins build" + (" --host" if device == "host" else "")
    if own is not None:
        raise DependencyError(
            f"the compiled sdst::RDSA is not installed, and {own.path} is code that came with the models: set"
            f" {HOST_CODE}=1 if you trust it, or run  {command}"
        )
    looked = ", ".join(str(place.path) for place in places)
    raise DependencyError(f"the compiled sdst::RDSA is missing (looked for {looked}): run  {command}")


def open_plugin_library(device: PluginDevice = "cuda", brought: Brought | None = None) -> RdsaLibrary:
    """Find, load and check a library of that device.

    Raises what `find_plugin_library` and `RdsaLibrary` raise, and ContractError for one of the other device.
    """
    library = RdsaLibrary(find_plugin_library(device, brought))
    if library.info.device != device:
        raise ContractError(
            f"{library.info.path}: expected a library for {device}, this one is for {library.info.device};"
            f" name {LIBRARIES[device]} instead"
        )
    return library


def find_stated_library(device: PluginDevice, brought: Brought) -> Path:
    """The library of the digest that `brought` states, an installed one before its own. Nothing is loaded.

    Raises ContractError when there are libraries and none of that digest, or the user has not said that its own may
    run; DependencyError when there is none at all.
    """
    places = [place for place in search_places(device, brought) if place.path.is_file()]
    if not places:
        return find_plugin_library(device, brought)  # says what is missing
    found = {place: sha256_file(place.path) for place in places}
    fitting = [place for place, digest in found.items() if digest == brought.sha256]
    if not fitting:
        place, digest = next(iter(found.items()))
        raise ContractError(
            f"{brought.folder}: plugin sha256: the engine was built with {(brought.sha256 or '')[:12]}, {place.path} is"
            f" {digest[:12]}; build it here with  sdst build BUNDLE --out {brought.folder}"
        )
    if fitting[0].name == _BUNDLE and not brought.allowed:
        raise ContractError(
            f"{fitting[0].path}: the engine's library is code that came with it, and not the one installed here; if you"
            f" trust it, say engine_host_code_allowed=True or set {HOST_CODE}=1, else build the engine here with"
            f"  sdst build BUNDLE --out {brought.folder}"
        )
    return fitting[0].path


def _require_stated(path: Path, brought: Brought) -> None:
    digest = sha256_file(path)
    if digest != brought.sha256:
        raise ContractError(
            f"{path}: expected sha256 {(brought.sha256 or '')[:12]}, got {digest[:12]}; copy it again or delete it"
        )


def rdsa_sizes(
    value: tuple[int, ...],
    endpoints: tuple[int, ...],
    reference: tuple[int, ...],
    length: tuple[int, ...],
    num_heads: int,
    num_points: int,
) -> tuple[int, int, int, int]:
    """B, T, M and D of the shapes of one call. Raises InputError when they do not fit together.

    The C API sees addresses and sizes only: what is let through here is read there.
    """
    if len(value) != 3 or len(reference) != 3 or num_heads < 1 or value[2] % num_heads:
        raise InputError(
            f"sdst::RDSA: expected value B T F with F a multiple of {num_heads} heads, and reference B M 2,"
            f" got {tuple(value)} and {tuple(reference)}"
        )
    B, T, F = value
    M = reference[1]
    E = 6 * num_heads * num_points
    if endpoints != (B, T, E) or reference != (B, M, 2) or length != (B,):
        raise InputError(
            f"sdst::RDSA: value {(B, T, F)}, {num_heads} heads and {num_points} points: expected endpoints {(B, T, E)},"
            f" reference {(B, M, 2)} and length {(B,)}, got {tuple(endpoints)}, {tuple(reference)} and {tuple(length)}"
        )
    return B, T, M, F // num_heads


class RdsaLibrary:
    """A loaded library. `info` says how it was built.

    Raises InputError for a file that is missing, cut short or no library of this machine, ContractError for a library
    of something else or of another version.
    """

    def __init__(self, path: Path) -> None:
        path = Path(path).absolute()
        _require_whole(path)
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            raise InputError(f"cannot load {path}: {error}; build it here with  sdst plugins build") from error
        try:
            self._rdsa, self._last_error, build_info = (
                library.sdst_rdsa, library.sdst_last_error, library.sdst_build_info,
            )  # fmt: skip
        except AttributeError as error:
            raise ContractError(f"{path}: not a library of sdst::RDSA ({error}); run  sdst plugins build") from error
        self._rdsa.argtypes = (ctypes.POINTER(RdsaProblem), ctypes.c_void_p)
        self._last_error.restype = build_info.restype = ctypes.c_char_p
        self.info = _parse_info(build_info(), path)

    def rdsa(self, problem: RdsaProblem, stream: int = 0) -> None:
        """Run the op; `stream` is a cudaStream_t as an integer, for the host library 0.

        Raises InputError with the library's message for arguments it refuses, DeviceError when CUDA refuses the launch.
        """
        status = self._rdsa(problem, stream)
        if status:
            message = self._last_error().decode("utf-8", "replace")
            raise (InputError if status == _BAD_ARGUMENT else DeviceError)(f"{self.info.path.name}: {message}")

    def rdsa_numpy(
        self,
        value: np.ndarray,
        endpoints: np.ndarray,
        reference: np.ndarray,
        length: np.ndarray,
        num_heads: int,
        num_points: int,
    ) -> np.ndarray:
        """The op on the host: B M F in the type of value.

        value B T F, float32, float16 or uint16 (the bits of bfloat16); endpoints B T E, float32; both may have any
        strides but that of their last dimension. reference B M 2, float32, and length B, int32, are contiguous.
        Raises InputError for arrays it cannot take, ContractError when this is the CUDA library.
        """
        if self.info.device != "host":
            raise ContractError(f"{self.info.path}: numpy arrays need the host library; run  sdst plugins build --host")
        kind = _NUMPY_TYPES.get(value.dtype)
        if kind is None:
            raise InputError(
                f"sdst::RDSA: value: expected float32, float16 or uint16 (the bits of bfloat16), got {value.dtype}"
            )
        B, T, M, D = rdsa_sizes(
            value.shape, endpoints.shape, reference.shape, length.shape, num_heads, num_points
        )  # fmt: skip
        _require_array("endpoints", endpoints, np.float32)
        _require_array("reference", reference, np.float32, contiguous=True)
        _require_array("length", length, np.int32, contiguous=True)
        out = np.empty((B, M, num_heads * D), value.dtype)
        problem = RdsaProblem(
            value.ctypes.data, endpoints.ctypes.data, reference.ctypes.data, length.ctypes.data, out.ctypes.data,
            B, T, M, num_heads, num_points, D, kind,
            *_row_strides("value", value), *_row_strides("endpoints", endpoints),
        )  # fmt: skip
        self.rdsa(problem)
        return out


_NUMPY_TYPES = {
    np.dtype(np.float32): TYPES["float32"],
    np.dtype(np.float16): TYPES["float16"],
    np.dtype(np.uint16): TYPES["bfloat16"],
}


def _require_array(name: str, array: np.ndarray, kind: type[np.generic], contiguous: bool = False) -> None:
    if array.dtype != kind:
        raise InputError(f"sdst::RDSA: {name}: expected {np.dtype(kind)}, got {array.dtype}; convert it")
    if contiguous and not array.flags.c_contiguous:
        raise InputError(f"sdst::RDSA: {name}: expected a contiguous array; use numpy.ascontiguousarray")


def _row_strides(name: str, array: np.ndarray) -> tuple[int, int]:
    """Elements from row to row over B and T; 0 where there is one row, whose stride means nothing."""
    *strides, last = (stride / array.itemsize if size > 1 else 0 for stride, size in zip(array.strides, array.shape))
    if last not in (0, 1) or any(stride % 1 for stride in strides):
        raise InputError(f"sdst::RDSA: {name}: expected unit stride in the last dimension, got {array.strides} bytes")
    return int(strides[0]), int(strides[1])


def _require_whole(path: Path) -> None:
    """Loading a shared object that was cut short can kill the process, so its size is compared with what it states."""
    try:
        with path.open("rb") as stream:
            header = stream.read(64)
            size = stream.seek(0, os.SEEK_END)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; run  sdst plugins build") from error
    if header[:6] != b"\x7fELF\x02\x01":
        raise InputError(f"{path}: not a shared library for 64-bit Linux; run  sdst plugins build")
    stated = size + 1
    if len(header) == 64:
        table, entry, count = struct.unpack_from("<Q", header, 40)[0], *struct.unpack_from("<2H", header, 58)
        stated = table + entry * count  # the table of sections is the last thing in the file
    if size < stated:
        raise InputError(f"{path}: the library is cut short at {size} bytes; run  sdst plugins build")


def _parse_info(text: bytes, path: Path) -> PluginInfo:
    kinds = {"version": str, "device": str, "cuda": str, "architectures": list, "ptx": list, "tensorrt": str}
    try:
        stated = load_json(text or b"", f"{path}: its build information is")
    except InputError:
        stated = None
    if not isinstance(stated, dict) or any(not isinstance(stated.get(key), kind) for key, kind in kinds.items()):
        raise ContractError(f"{path}: its build information lacks one of {', '.join(kinds)}; run  sdst plugins build")
    if stated["version"] != API_VERSION or stated["device"] not in LIBRARIES:
        raise ContractError(
            f"{path}: expected version {API_VERSION} for cuda or host, got version {stated['version']} for"
            f" {stated['device']}; run  sdst plugins build"
        )
    return PluginInfo(
        path=path,
        sha256=sha256_file(path),
        version=stated["version"],
        device=cast(PluginDevice, stated["device"]),
        cuda=stated["cuda"],
        architectures=tuple(int(number) for number in stated["architectures"]),
        ptx=tuple(int(number) for number in stated["ptx"]),
        tensorrt=stated["tensorrt"],
    )
