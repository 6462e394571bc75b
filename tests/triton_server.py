"""The real tritonserver for tests: that of nvidia-pytriton, from PyPI, with a Python of its own.

It has the Python backend only, and runs on a CPU. Its stub garbles arrays of numpy 2, and tritonclient wants another
protobuf than onnx does; hence the packages lie in a folder of their own, $SDST_TEST_CACHE or ~/.cache/sdst-tests, and
each test session makes an environment that finds them and this checkout. A test is skipped, saying why, where pip
cannot fetch them.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from places import ROOT
from tensorrt_wheels import cache_folder

SERVER = "nvidia-pytriton==0.7.0"
PINNED = ("numpy==1.26.4", "protobuf==4.25.9", "tritonclient[grpc]==2.51.0")  # in place of those of constraints.txt
PACKAGES = ("onnxruntime", "av", "tokenizers", "safetensors", "pydantic", "tyro", "rich", "jinja2")
PLACES = {"http": ("--http-address", "--http-port"), "grpc": ("--grpc-address", "--grpc-port")}


class TritonServer:
    """A running tritonserver; `url` and `grpc` are where it listens."""

    def __init__(self, process: subprocess.Popen[str], url: str, grpc: str, log: Path) -> None:
        self.process, self.url, self.grpc, self.log = process, url, grpc, log

    def get(self, path: str) -> tuple[int, Any]:
        """(status, JSON or None) of a GET."""
        return self._ask(urllib.request.Request(f"{self.url}/v2/{path}"))

    def infer(self, **inputs: Any) -> tuple[int, Any]:
        """(status, answer) of sdst_ground over HTTP: on success its outputs, parsed, else the error's words.

        An input is (type, shape, values); bytes go in as text.
        """
        given = [
            {"name": name, "datatype": kind, "shape": shape, "data": data}
            for name, (kind, shape, data) in inputs.items()
        ]
        body = json.dumps({"inputs": given}).encode()
        status, answer = self._ask(urllib.request.Request(f"{self.url}/v2/models/sdst_ground/infer", body))
        if status != 200:
            return status, answer["error"]
        return status, {out["name"]: [json.loads(text) for text in out["data"]] for out in answer["outputs"]}

    def stub(self, model: str) -> int:
        """The process of a model."""
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = path.read_text().split("\0")
                if (
                    "python_backend_stub" in words[0]
                    and f"/{model}/1/model.py" in words[1]
                    and self._is_own(path.parent)
                ):
                    return int(path.parent.name)
        raise AssertionError(f"no process of {model}")

    def _is_own(self, process: Path) -> bool:
        return f"\nPPid:\t{self.process.pid}\n" in (process / "status").read_text()

    def _ask(self, request: urllib.request.Request) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                text = response.read()
                return response.status, json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            text = error.read()
            return error.code, json.loads(text) if text else None


@contextlib.contextmanager
def served(repository: Path) -> Iterator[TritonServer]:
    """A server of this repository, ready; killed at the end when it still runs."""
    python, server = triton_python(), _packages() / "pytriton" / "tritonserver"
    ports = {name: _free_port() for name in PLACES}
    command = [server / "bin" / "tritonserver", f"--model-repository={repository}"]
    command += [f"--backend-directory={server / 'backends'}", "--allow-metrics=false", "--exit-timeout-secs=10"]
    for name, (address, port) in PLACES.items():
        command += [f"{address}=127.0.0.1", f"{port}={ports[name]}"]
    path = os.pathsep.join([str(python.parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR")}
    log = repository.with_name(f"{repository.name}-{ports['http']}.log")
    with log.open("w") as out:
        process = subprocess.Popen(list(map(str, command)), stdout=out, stderr=out, text=True, env=environment)
    running = TritonServer(process, f"http://127.0.0.1:{ports['http']}", f"127.0.0.1:{ports['grpc']}", log)
    try:
        deadline_s = time.monotonic() + 90
        while not _is_ready(running):
            assert process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < deadline_s, log.read_text()[-4000:]
            time.sleep(0.1)
        yield running
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@functools.cache
def triton_python() -> Path:
    """The Python of an environment with what the server's models need, tritonclient and this checkout."""
    folder = Path(tempfile.mkdtemp(prefix="sdst-triton-"))
    packages = _packages()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    site.joinpath("sdst.pth").write_text("\n".join(map(str, (packages, ROOT, ROOT / "runtime"))), encoding="utf-8")
    import atexit

    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder / "bin" / "python"


def _is_ready(server: TritonServer) -> bool:
    try:
        return server.get("health/ready")[0] == 200
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@functools.cache
def _packages() -> Path:
    """The folder with all packages, fetched once for all test runs."""
    if sys.version_info[:2] != (3, 11) or os.uname().machine != "x86_64":
        pytest.skip("needs Python 3.11 on x86-64, for which the server's stub is built here")
    cache = cache_folder()
    target = cache / "pytriton-0.7.0-cp311"
    if not target.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as directory:
            whole = Path(directory) / "packages"
            _install(Path(directory), whole)
            if not target.is_dir():
                whole.rename(target)
    return target


def _install(directory: Path, whole: Path) -> None:
    pinned = {re.split(r"[\[=]", pin)[0] for pin in PINNED} | {"grpcio"}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    kept = [line for line in lines if re.split(r"[=\s]", line)[0].lower() not in pinned]
    constraints = directory / "constraints.txt"
    constraints.write_text("\n".join([*kept, *(re.sub(r"\[.*?\]", "", pin) for pin in PINNED)]))
    _pip("install", "--target", whole, "-c", constraints, *PINNED, *PACKAGES)
    _pip("download", "--no-deps", "--dest", directory, SERVER)
    (wheel,) = directory.glob("nvidia_pytriton*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(whole)
    server = whole / "pytriton" / "tritonserver"
    stub = server / "python_backend_stubs" / "3.11" / "triton_python_backend_stub"
    shutil.copy(stub, server / "backends" / "python")
    for program in (server / "bin" / "tritonserver", server / "backends" / "python" / stub.name):
        program.chmod(0o755)


def _pip(*words: object) -> None:
    command = [sys.executable, "-m", "pip", words[0], "--quiet", "--retries", "1", *words[1:]]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1:]
        pytest.skip(f"needs {SERVER} and tritonclient from PyPI, which pip could not fetch: {' '.join(reason)}")
