"""`sdst plugins build` and `sdst plugins info`: the compiled sdst::RDSA, built by cmake to where the runtime looks."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from sdst_runtime.children import tied_process
from sdst_runtime.errors import ContractError, DependencyError, InputError, SdstError
from sdst_runtime.files import cache_folder, copy_file, only_process, remove, sha256_file, write_text
from sdst_runtime.machine import gpus, usable_cores
from sdst_runtime.sessions.plugin_library import (
    LIBRARIES,
    PACKAGE_FOLDER,
    Place,
    PluginDevice,
    PluginInfo,
    RdsaLibrary,
    find_plugin_library,
    search_places,
)

from .consoles import make_console
from .next_step import advise

_SHIPPED = Path(__file__).parent / "plugin_sources"  # setup.py puts them into the wheel
SOURCES = _SHIPPED if _SHIPPED.is_dir() else Path(__file__).parents[1]  # of an installed package, of a checkout
TARGETS: dict[PluginDevice, str] = {"cuda": "sdst_plugins", "host": "sdst_plugins_host"}
TRITON_LIBRARIES: dict[PluginDevice, str] = {
    device: library.replace("sdst_plugins", "sdst_triton_plugins") for device, library in LIBRARIES.items()
}
_LAST_LINES = 15  # of the log, shown when a build fails
_MISSING = (  # what cmake says, and what mends it
    (r"CMake 3\.\d+ or higher is required", "cmake 3.24 or newer is needed: run  pip install cmake"),
    (
        "No CMAKE_CXX_COMPILER could be found|Could not find compiler set in environment variable CXX",
        "a C++17 compiler is needed: run  apt install g++  or name one in CXX",
    ),
    (
        r"CMAKE_MAKE_PROGRAM is not set|unable to find a build program",
        "make or ninja is needed: run  apt install make",
    ),
    (
        "no nvcc was found",
        "a CUDA compiler is needed: install the CUDA toolkit, 12.2 or newer, or name its nvcc in CUDACXX;"
        " for a library that runs on the CPU:  sdst plugins build --host",
    ),
)  # fmt: skip


class BuildError(SdstError):
    """The compiler or cmake failed: the message names the log."""


@dataclass(frozen=True)
class Found:
    """What lies at one place: `info` of a sound library, `fault` of another file, neither where there is none."""

    place: Place
    info: PluginInfo | None = None
    fault: SdstError | None = None


def build(
    *,
    tensorrt: Path | None = None,
    fetch_tensorrt_headers: str | None = None,
    host: bool = False,
    out: Path | None = None,
    jobs: int | None = None,
) -> None:
    """Build the compiled sdst::RDSA and put it where the runtime looks; prints what it is.

    With TensorRT headers (those given here, or on the system's paths) the library also holds the TensorRT plugin, and
    libsdst_triton_plugins.so comes beside it, which registers it in Triton; that one is for TensorRT's major alone.
    The old library stays until the new one is whole. What was compiled is kept (in build/ of a checkout, or in
    $SDST_CACHE, by default ~/.cache/sdst) and not compiled again.

    Args:
        tensorrt: Folder of TensorRT or of its headers (NvInfer.h).
        fetch_tensorrt_headers: Version of headers to fetch from NVIDIA's repository, as 10.16.
        host: Build for the CPU: no CUDA is needed, and pointers are of the host.
        out: Folder of the library. Default: lib/ in the package sdst_runtime.
        jobs: Compilers at once. Default: one a core.
    """
    if not (SOURCES / "CMakeLists.txt").is_file():
        raise InputError(
            f"{SOURCES} holds no CMakeLists.txt: this installation lacks the sources of the plugins; install it again"
            " from a checkout, or name a library in SDST_PLUGINS"
        )
    cmake = shutil.which("cmake")
    if not cmake:
        raise DependencyError("cmake, 3.24 or newer, is needed to build: run  pip install cmake")
    device: PluginDevice = "host" if host else "cuda"
    options = _header_options(tensorrt, fetch_tensorrt_headers)
    folder = build_folder() / f"plugins-{device}"
    with only_process(folder / "lock"):
        _configure(cmake, folder, device, options)
        _compile(cmake, folder, device, jobs or usable_cores())
        made = RdsaLibrary(folder / LIBRARIES[device]).info
        _require_wanted(made, device, needs_tensorrt=bool(options))
        place = (out or PACKAGE_FOLDER).absolute() / LIBRARIES[device]
        copy_file(made.path, place)
        _copy_registering(folder, made, place.parent)
    make_console().print(_facts(RdsaLibrary(place).info))
    advise(*(("sdst", "doctor") if out is None else ("sdst", "plugins", "info", place)))


def info(file: tyro.conf.Positional[Path | None] = None, /) -> None:
    """Show where the compiled sdst::RDSA is looked for, what is there and how it was built.

    Args:
        file: A library to show instead.
    """
    if file is not None:
        make_console().print(_facts(RdsaLibrary(file).info))
        return
    places = {place.path: place for device in LIBRARIES for place in search_places(device)}.values()
    found = [_look(place) for place in places]
    make_console().print(_places_table(found))
    for one in found:
        if one.info:
            make_console().print(_facts(one.info))
    for one in found:
        if one.fault:
            raise one.fault
    if not any(one.info for one in found):
        find_plugin_library("cuda")  # says where it looked and what to run


def build_folder() -> Path:
    """Where cmake works: a checkout's build/, or, as nothing is to lie beside installed files, a folder of the cache.

    That folder is one of the sources' content: pip keeps their old times, by which cmake would not see a new version.
    """
    if SOURCES != _SHIPPED:
        return SOURCES / "build"
    digest = hashlib.sha256()
    for path in sorted(path for path in SOURCES.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(SOURCES)} {sha256_file(path)}\n".encode())
    return cache_folder() / f"build-{digest.hexdigest()[:12]}"


def covers(info: PluginInfo, capability: int) -> bool:
    """Whether a library runs on a GPU of that compute capability (90 is 9.0).

    Machine code runs on its own major version, from its own minor version on; PTX on every newer GPU (CUDA programming
    guide).
    """
    machine_code = any(own // 10 == capability // 10 and own <= capability for own in info.architectures)
    return machine_code or any(own <= capability for own in info.ptx)


# ---------------------------------------------------------------- building


def _header_options(tensorrt: Path | None, fetch: str | None) -> list[str]:
    if tensorrt and fetch:
        raise InputError("--tensorrt and --fetch-tensorrt-headers: expected one of them, got both")
    if fetch:
        if not re.fullmatch(r"\d+(\.\d+)+", fetch):
            raise InputError(f"--fetch-tensorrt-headers: expected a version as 10.16, got {fetch!r}")
        return [f"-DSDST_FETCH_TENSORRT_HEADERS={fetch}"]
    if not tensorrt:
        return []
    for pattern in ("NvInfer.h", "include/NvInfer.h", "include/*/NvInfer.h"):
        for header in sorted(tensorrt.absolute().glob(pattern)):
            return [f"-DTENSORRT_INCLUDE_DIR={header.parent}"]
    raise InputError(f"--tensorrt {tensorrt}: expected a folder with NvInfer.h or include/NvInfer.h in it")


def _configure(cmake: str, folder: Path, device: PluginDevice, options: list[str]) -> None:
    """Configure anew: what an earlier build was told is forgotten, what it compiled is kept."""
    cuda = "ON" if device == "cuda" else "OFF"
    command = [cmake, "-S", str(SOURCES), "-B", str(folder), "-U", "SDST_*", "-U", "TENSORRT_*", f"-DSDST_CUDA={cuda}"]
    log = folder / "configure.log"
    code = _run([*command, "-DSDST_TESTS=OFF", "-DCMAKE_BUILD_TYPE=Release", *options], log)
    if code:
        remove(folder / "CMakeCache.txt")  # it would remember that a tool was missing
        text = log.read_text(errors="replace")
        for said, mends in _MISSING:
            if re.search(said, " ".join(text.split())):  # cmake breaks its lines
                raise DependencyError(mends)
        _show_end(text)
        raise BuildError(f"cmake could not configure the build (exit code {code}): see above and {log}")


def _compile(cmake: str, folder: Path, device: PluginDevice, jobs: int) -> None:
    log = folder / "build.log"
    code = _run([cmake, "--build", str(folder), "--target", TARGETS[device], "--parallel", str(jobs)], log)
    if code:
        _show_end(log.read_text(errors="replace"))
        raise BuildError(
            f"the build failed (exit code {code}): see above and {log}; the old library, if any, is as it was"
        )


def _copy_registering(folder: Path, made: PluginInfo, place: Path) -> None:
    """Put what registers the plugin in Triton beside it; without the plugin an older one goes."""
    name = TRITON_LIBRARIES[made.device]
    if made.tensorrt:
        copy_file(folder / name, place / name)
    else:
        remove(place / name)


def _require_wanted(made: PluginInfo, device: PluginDevice, needs_tensorrt: bool) -> None:
    if made.device != device:
        raise ContractError(f"{made.path}: expected a library for {device}, the build made one for {made.device}")
    if needs_tensorrt and not made.tensorrt:
        raise BuildError(
            f"{made.path} holds no TensorRT plugin, although headers were named: see configure.log beside it"
        )


def _run(command: list[str], log: Path) -> int:
    """The exit code. Shows status lines and progress on stderr; the compilers end with this process."""
    console, lines = make_console(stderr=True), []
    with tied_process(command, {**os.environ, "LC_ALL": "C"}) as process:
        assert process.stdout
        for line in process.stdout:
            lines.append(line)
            if line.startswith(("-- ", "[")):
                _say(console, line.rstrip())
        code = process.wait()
    write_text(log, "".join(lines))
    return code


def _show_end(text: str) -> None:
    console = make_console(stderr=True)
    for line in text.rstrip().splitlines()[-_LAST_LINES:]:
        _say(console, line)


def _say(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True)


# ---------------------------------------------------------------- showing


def _look(place: Place) -> Found:
    if not place.path.is_file():
        return Found(place)
    try:
        return Found(place, RdsaLibrary(place.path).info)
    except SdstError as error:
        return Found(place, fault=error)


def _places_table(found: list[Found]) -> Table:
    table = Table(title="where the runtime looks, in this order")
    for name in ("place", "file", "state"):
        table.add_column(name, overflow="fold")
    for one in found:
        state = f"found, for {one.info.device}" if one.info else "cannot be used" if one.fault else "not there"
        table.add_row(one.place.name, str(one.place.path), state)
    return table


def _facts(info: PluginInfo) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("library", str(info.path))
    table.add_row("sha256", info.sha256)
    table.add_row("version", info.version)
    table.add_row("device", info.device)
    if info.device == "cuda":
        table.add_row("CUDA", info.cuda)
        table.add_row("architectures", " ".join(f"sm_{number}" for number in info.architectures))
        table.add_row("this GPU", _coverage(info))
    table.add_row(
        "TensorRT", f"plugin, headers {info.tensorrt}" if info.tensorrt else "no plugin: built without its headers"
    )
    registering = info.path.with_name(TRITON_LIBRARIES[info.device])
    if registering.is_file():
        table.add_row("for Triton", str(registering))
    return table


def _coverage(info: PluginInfo) -> str:
    lines = [
        f"{name}, sm_{capability}: {'covered' if covers(info, capability) else 'not covered; build it on this machine'}"
        for name, capability in ((gpu.name, int(gpu.capability.replace(".", ""))) for gpu in gpus())
    ]
    return "\n".join(lines) or "not known: nvidia-smi tells of none"
