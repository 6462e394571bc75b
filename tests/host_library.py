"""The host build of sdst::RDSA for the tests, made once a session by cmake, and libraries that only look like one."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest
from places import ROOT

SOUND = (
    '{"version": "1", "device": "host", "cuda": "12.2", "architectures": [75, 90], "ptx": [90], "tensorrt": "10.3.0"}'
)
EXPORTS = """
extern "C" int sdst_rdsa(const void*, void*) { return 2; }
extern "C" const char* sdst_last_error() { return "the device said no"; }
"""


def require_tools() -> None:
    """Skip the test that calls this where the host library cannot be built."""
    missing = [name for name in ("cmake", "c++") if not shutil.which(name)]
    if missing:
        pytest.skip(f"the host build of sdst::RDSA needs {' and '.join(missing)}")


def build_host_library(folder: Path) -> Path:
    """libsdst_plugins_host.so in `folder`, which workers share: one builds, the others wait."""
    require_tools()
    library = folder / "libsdst_plugins_host.so"
    with (folder / "host-library.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.is_file():
            build = folder / "host-library"
            _run("cmake", "-S", ROOT, "-B", build, "-DSDST_CUDA=OFF", "-DSDST_TESTS=OFF", "-DCMAKE_BUILD_TYPE=Release")
            _run("cmake", "--build", build, "--target", "sdst_plugins_host")
            shutil.copyfile(build / library.name, library)
    return library


def compiled(folder: Path, source: str) -> Path:
    """A library of this C++; each source has a file name of its own, for the loader remembers names."""
    require_tools()
    path = folder / f"lib{hashlib.sha256(source.encode()).hexdigest()[:8]}.so"
    include = f"-I{ROOT / 'plugins' / 'include'}"
    command = ["c++", "-x", "c++", "-shared", "-fPIC", include, "-", "-o", str(path)]
    subprocess.run(command, input=source, text=True, check=True)
    return path


def stating(info: str) -> str:
    """C++ of a library with our symbols and this build information; its op fails as on a broken device."""
    return f'{EXPORTS}extern "C" const char* sdst_build_info() {{ return R"({info})"; }}\n'


def tells_when_loaded(place: Path, info: str = SOUND) -> str:
    """C++ of a library as `stating` makes it, which writes the file `place` as soon as it is loaded."""
    return f"""#include <cstdio>
__attribute__((constructor)) static void tell() {{
    if (std::FILE* file = std::fopen("{place}", "w")) std::fclose(file);
}}
{stating(info)}"""


def _run(*command: object) -> None:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
