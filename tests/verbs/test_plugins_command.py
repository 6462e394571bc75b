"""`sdst plugins build` and `info`: real builds of a copy of the sources, what breaks them, and what is shown."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from host_library import ROOT, SOUND, compiled, require_tools, stating
from processes import alive, hears_hangup, wait_until

from sdst import plugins
from sdst.cli import main
from sdst_runtime.sessions import plugin_library
from sdst_runtime.sessions.plugin_library import VARIABLE, RdsaLibrary

HOST = "libsdst_plugins_host.so"


@pytest.fixture(autouse=True)
def nothing_built(monkeypatch, tmp_path):
    """The runtime looks into `tmp_path` only; tables are not wrapped."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(plugin_library, "PACKAGE_FOLDER", tmp_path / "lib")
    monkeypatch.setattr(plugin_library, "_CHECKOUT", tmp_path / "none")
    monkeypatch.setenv("COLUMNS", "300")


@pytest.fixture
def sources(monkeypatch, tmp_path) -> Path:
    """A copy of the sources to build and to break."""
    require_tools()
    shutil.copytree(ROOT / "plugins", tmp_path / "sources" / "plugins")
    shutil.copy(ROOT / "CMakeLists.txt", tmp_path / "sources")
    monkeypatch.setattr(plugins, "SOURCES", tmp_path / "sources")
    return tmp_path / "sources"


def run(capsys, *arguments: object) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of `sdst plugins ARGUMENTS`."""
    code = main(["plugins", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def fails(capsys, *arguments: object) -> str:
    """The error line of a command that must fail as bad input does."""
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert "Traceback" not in err
    return err.splitlines()[-1]


def test_build_then_break_then_mend(capsys, sources, tmp_path):
    out = tmp_path / "out"
    command = ("build", "--host", "--out", out, "--jobs", 1)
    code, shown, progress = run(capsys, *command)
    assert code == 0, progress
    assert "-- Configuring done" in progress
    assert re.search(r"^\[.*rdsa_host", progress, re.MULTILINE)
    before = (out / HOST).read_bytes()
    rows = dict(re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in shown.splitlines())
    assert rows["library"] == str(out / HOST)
    assert rows["sha256"] == hashlib.sha256(before).hexdigest()
    assert rows["device"] == "host"

    source = sources / "plugins" / "src" / "rdsa_host.cpp"
    text = source.read_text()
    source.write_text(text + "\n#error this cannot be compiled\n")
    code, shown, progress = run(capsys, *command)
    log = sources / "build" / "plugins-host" / "build.log"
    assert (code, shown) == (2, "")
    assert "this cannot be compiled" in progress
    assert "this cannot be compiled" in log.read_text()
    assert re.search(rf"error: the build failed \(exit code \d+\): see above and {log}; the old library", progress)
    assert (out / HOST).read_bytes() == before

    source.write_text(text)
    assert run(capsys, *command)[0] == 0
    assert [path.name for path in out.iterdir()] == [HOST]
    assert run(capsys, "info", out / HOST)[0] == 0


def test_build_of_an_installed_package(capsys, monkeypatch, tmp_path):
    """The wheel's copy of the sources is enough, and nothing but the library is written beside them."""
    require_tools()
    shipped, cache = tmp_path / "site" / "sdst" / "plugin_sources", tmp_path / "cache"
    shutil.copytree(ROOT / "plugins", shipped / "plugins", ignore=shutil.ignore_patterns("tests"))
    shutil.copy(ROOT / "CMakeLists.txt", shipped)
    monkeypatch.setattr(plugins, "_SHIPPED", shipped)
    monkeypatch.setattr(plugins, "SOURCES", shipped)
    monkeypatch.setenv("SDST_CACHE", str(cache))
    before = sorted(shipped.rglob("*"))
    code, _, progress = run(capsys, "build", "--host", "--out", tmp_path / "out", "--jobs", 1)
    assert code == 0, progress
    assert RdsaLibrary(tmp_path / "out" / HOST).info.device == "host"
    assert sorted(shipped.rglob("*")) == before
    first = plugins.build_folder()
    assert [path.name for path in cache.iterdir()] == [first.name]
    (shipped / "plugins" / "src" / "error.h").write_text("another version")
    assert plugins.build_folder() != first


def test_cmake_says_why_it_cannot_configure(capsys, sources, tmp_path):
    (sources / "CMakeLists.txt").write_text('message(FATAL_ERROR "this machine is too old")\n')
    code, _, progress = run(capsys, "build", "--host", "--out", tmp_path / "out")
    assert code == 2
    assert "this machine is too old" in progress
    log = sources / "build" / "plugins-host" / "configure.log"
    assert f"error: cmake could not configure the build (exit code 1): see above and {log}" in progress
    assert not (tmp_path / "out").exists()


def test_missing_tools(capsys, sources, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDACXX", str(tmp_path / "no-nvcc"))
    line = fails(capsys, "build")
    assert line.startswith(
        "error: a CUDA compiler is needed: install the CUDA toolkit, 12.2 or newer, or name its nvcc"
    )
    assert line.endswith("for a library that runs on the CPU: sdst plugins build --host")
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    assert fails(capsys, "build", "--host") == (
        "error: a C++17 compiler is needed: run apt install g++ or name one in CXX"
    )
    monkeypatch.delenv("CXX")
    plugins._configure(shutil.which("cmake"), sources / "build" / "plugins-host", "host", [])  # nothing is remembered
    monkeypatch.setenv("PATH", str(tmp_path))
    assert fails(capsys, "build", "--host").startswith("error: cmake, 3.24 or newer, is needed to build: run")


def test_bad_options(capsys, sources, tmp_path, monkeypatch):
    line = fails(capsys, "build", "--tensorrt", tmp_path, "--fetch-tensorrt-headers", "10.16")
    assert line == "error: --tensorrt and --fetch-tensorrt-headers: expected one of them, got both"
    line = fails(capsys, "build", "--fetch-tensorrt-headers", "newest")
    assert line == "error: --fetch-tensorrt-headers: expected a version as 10.16, got 'newest'"
    line = fails(capsys, "build", "--tensorrt", tmp_path)
    assert line == f"error: --tensorrt {tmp_path}: expected a folder with NvInfer.h or include/NvInfer.h in it"
    monkeypatch.setattr(plugins, "SOURCES", tmp_path)
    assert fails(capsys, "build").startswith(f"error: {tmp_path} holds no CMakeLists.txt: this installation lacks")


def test_headers_are_found_where_installations_have_them(tmp_path):
    for folder in ("a", "b/include", "c/include/x86_64-linux-gnu"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "NvInfer.h").touch()
        given = tmp_path / folder.split("/")[0]
        assert plugins._header_options(given, None) == [f"-DTENSORRT_INCLUDE_DIR={tmp_path / folder}"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_build_that_is_ended_leaves_the_old_library_and_no_compiler(sources, tmp_path, how):
    compiler, running, out = tmp_path / "slow-compiler", tmp_path / "pid", tmp_path / "out"
    wait = f"echo $$ > {running}.new; mv {running}.new {running}; exec sleep 300"
    compiler.write_text(f'#!/bin/sh\ncase "$*" in *rdsa_host*) {wait};; esac\nexec c++ "$@"\n')
    compiler.chmod(0o755)
    out.mkdir()
    (out / HOST).write_text("old")
    program = "import signal, sys, pathlib, sdst.plugins as p; from sdst.cli import main\n"
    program += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job's children ignore it
    program += f"p.SOURCES = pathlib.Path({str(sources)!r})\n"
    program += f"sys.exit(main(['plugins', 'build', '--host', '--out', {str(out)!r}]))"
    with subprocess.Popen(
        [sys.executable, "-c", program], env={**os.environ, "CXX": str(compiler)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, preexec_fn=hears_hangup,
    ) as process:  # fmt: skip
        wait_until(running.is_file)
        process.send_signal(how)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == (130 if how == signal.SIGINT else -how), errors
    assert how != signal.SIGINT or errors.splitlines()[-1] == "interrupted"
    assert {path.name: path.read_text() for path in out.iterdir()} == {HOST: "old"}
    wait_until(lambda: not alive(int(running.read_text())))


# --- info ------------------------------------------------------------------------------------------------------------


def test_info_where_nothing_is(capsys, tmp_path):
    code, out, err = run(capsys, "info")
    assert code == 2
    for name in ("libsdst_plugins.so", HOST):
        assert re.search(rf"package +│ {tmp_path}/lib/{name} +│ not there", out)
    looked = tmp_path / "lib" / "libsdst_plugins.so"
    assert err == f"error: the compiled sdst::RDSA is missing (looked for {looked}): run sdst plugins build\n"


def test_info_of_a_file_that_cannot_be_used(capsys, tmp_path):
    path = tmp_path / "lib" / "libsdst_plugins.so"
    path.parent.mkdir()
    path.write_text("not a library")
    code, out, err = run(capsys, "info")
    assert code == 2
    assert re.search(rf"{path} +│ cannot be used", out)
    assert err == f"error: {path}: not a shared library for 64-bit Linux; run sdst plugins build\n"
    assert fails(capsys, "info", path) == err.strip()


def test_info_of_what_is_found(capsys, monkeypatch, tmp_path):
    library = compiled(tmp_path, stating(SOUND.replace("host", "cuda")))
    monkeypatch.setenv(VARIABLE, str(library))
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text(
        "#!/bin/sh\necho 'NVIDIA H200, 580.65.06, 9.0, 143771, 12, 1980, 3201, 31'\n"
        "echo 'NVIDIA A10, 580.65.06, 8.6, 23028, 0, 210, 405, 30'\n"
    )
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(smi.parent), prepend=os.pathsep)
    code, out, err = run(capsys, "info")
    assert (code, err) == (0, "")
    assert re.search(rf"\$SDST_PLUGINS +│ {library} +│ found, for cuda", out)
    for line in (
        f"sha256 +{hashlib.sha256(library.read_bytes()).hexdigest()}",
        "device +cuda",
        "CUDA +12.2",
        "architectures +sm_75 sm_90",
        "this GPU +NVIDIA H200, sm_90: covered",
        " +NVIDIA A10, sm_86: not covered; build it on this machine",
        "TensorRT +plugin, headers 10.3.0",
    ):
        assert re.search(rf"^{line} *$", out, re.MULTILINE), line


@pytest.mark.parametrize(
    ("architectures", "ptx", "capability", "covered"),
    [
        ((75, 80), (), 86, True),
        ((86,), (), 80, False),
        ((90,), (), 100, False),
        ((120,), (), 121, True),
        ((90,), (), 90, True),
        ((75, 90), (90,), 100, True),
        ((75, 90), (90,), 89, False),
    ],
)
def test_coverage(architectures, ptx, capability, covered, tmp_path):
    info = RdsaLibrary(compiled(tmp_path, stating(SOUND))).info

    assert plugins.covers(replace(info, architectures=architectures, ptx=ptx), capability) is covered


def test_no_driver(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert plugins.gpus() == []
