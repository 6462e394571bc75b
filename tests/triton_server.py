"""The real tritonserver for tests: that of nvidia-pytriton, from PyPI, with a Python of its own.

It has the Python backend only, and runs on a CPU. Its stub garbles arrays of numpy 2, and tritonclient wants another
protobuf than onnx does; hence the packages lie in a folder of their own, $SDST_TEST_CACHE or ~/.cache/sdst-tests, and
each test session makes an environment that finds them and this checkout. They are fetched once (about 100 MB, a
minute); a test is skipped, saying why, where pip cannot fetch them.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
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
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from places import ROOT
from processes import alive, wait_until
from tensorrt_wheels import cache_folder

from sdst_runtime.children import end_with_parent

SERVER = "nvidia-pytriton==0.7.0"
PINNED = (  # in place of those of constraints.txt
    "numpy==1.26.4", "protobuf==4.25.9", "tritonclient[grpc,http]==2.51.0", "grpcio==1.85.3", "aiohttp==3.14.5",
    "geventhttpclient==2.0.2", "gevent==26.9.0",
)  # fmt: skip
PACKAGES = ("onnxruntime", "av", "tokenizers", "safetensors", "pydantic", "tyro", "rich", "jinja2")
STARTS_THAT_FAIL = (  # what the server says of a port that another process took, and of a fault of its Python backend
    "already in use",
    "boost::interprocess::lock_exception",
)
PLACES = {"http": ("--http-address", "--http-port"), "grpc": ("--grpc-address", "--grpc-port")}


class TritonServer:
    """A running tritonserver; `http` and `grpc` are where it listens."""

    def __init__(self, process: subprocess.Popen[str], ports: Mapping[str, int], log: Path) -> None:
        self.process, self.ports, self.log = process, ports, log
        self.http, self.grpc = (f"127.0.0.1:{ports[name]}" for name in PLACES)
        self.url = f"http://{self.http}"

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
        return status, {
            out["name"]: [json.loads(value) if out["datatype"] == "BYTES" else value for value in out["data"]]
            for out in answer["outputs"]
        }

    def statistics(self, model: str = "sdst_ground") -> tuple[int, int]:
        """Requests and batches of a model so far."""
        (stats,) = self.get(f"models/{model}/stats")[1]["model_stats"]
        return int(stats["inference_count"]), int(stats["execution_count"])

    def stub(self, model: str) -> int:
        """The process of a model, the youngest if it was started again."""
        found = [pid for pid, words in self.stubs().items() if f"/{model}/1/model.py" in words]
        assert found, f"no process of {model}"
        return max(found)

    def stubs(self) -> dict[int, str]:
        """The processes of all models that are in Python, and their command lines."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (folder / "cmdline").read_text()
                own = f"\nPPid:\t{self.process.pid}\n" in (folder / "status").read_text()
                if own and "python_backend_stub" in words and alive(int(folder.name)):
                    found[int(folder.name)] = words
        return found

    def post(self, path: str) -> tuple[int, Any]:
        """(status, JSON or None) of a POST without a body, as the model repository's API takes."""
        return self._ask(urllib.request.Request(f"{self.url}/v2/{path}", b"{}"))

    def _ask(self, request: urllib.request.Request) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                text = response.read()
                return response.status, json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            text = error.read()
            return error.code, json.loads(text) if text else None


def write_repository(
    bundle: Path, out: Path, kind: str, *options: object, python: Path | str | None = None
) -> subprocess.CompletedProcess[str]:
    """`sdst triton`, by default in the environment that has tritonclient."""
    command = [python or triton_python(), "-m", "sdst", "triton", bundle, "--out", out, "--kind", kind, *options]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)


def make_repository(bundle: Path, video: Path, folder: Path) -> Path:
    """A repository of kind cpu; beside it `root` with two copies of the video, and a link out of it."""
    (folder / "root").mkdir(parents=True)
    for place in (folder / "outside.mp4", folder / "root" / "noise.mp4", folder / "root" / "lecture.mp4"):
        shutil.copy(video, place)
    (folder / "root" / "link.mp4").symlink_to(folder / "outside.mp4")
    done = write_repository(bundle, folder / "models", "cpu", "--root", folder / "root")
    assert (done.returncode, done.stdout) == (0, f"tritonserver --model-repository={folder / 'models'}\n"), done.stderr
    return folder / "models"


def asked(sentences: Sequence[str], **more: Any) -> dict[str, Any]:
    """Inputs of sdst_ground."""
    return {"sentences": ("BYTES", [1, len(sentences)], list(sentences)), **more}


def path(name: str) -> dict[str, Any]:
    """Its input of a video below the root."""
    return {"path": ("BYTES", [1, 1], [name])}


@contextlib.contextmanager
def served(repository: Path, *options: str, ports: Mapping[str, int] | None = None) -> Iterator[TritonServer]:
    """A server of this repository, ready; ended, and killed if need be, with its models. `ports`: of another one."""
    server = _started(repository, options, ports)
    try:
        yield server
    finally:
        stubs = server.stubs()
        if server.process.poll() is None:
            server.process.send_signal(signal.SIGTERM)
            try:
                server.process.wait(30)
            except subprocess.TimeoutExpired:
                server.process.kill()
                server.process.wait()
        for pid in filter(alive, stubs):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _started(repository: Path, options: Sequence[str], ports: Mapping[str, int] | None) -> TritonServer:
    for _ in range(3):
        server = _start(repository, options, ports or {name: _free_port() for name in PLACES})
        wait_until(lambda: server.process.poll() is not None or _is_ready(server), limit_s=240)  # noqa: B023
        if server.process.poll() is None:
            return server
        told = server.log.read_text()
        assert any(fault in told for fault in STARTS_THAT_FAIL), told[-4000:]
    raise AssertionError("three starts failed, by taken ports or Triton's own fault")


def _start(repository: Path, options: Sequence[str], ports: Mapping[str, int]) -> TritonServer:
    python, files = triton_python(), _packages() / "pytriton" / "tritonserver"
    command = [files / "bin" / "tritonserver", f"--model-repository={repository}"]
    command += [
        f"--backend-directory={files / 'backends'}",
        "--allow-metrics=false",
        "--exit-timeout-secs=20",
        *options,
    ]
    for name, (address, port) in PLACES.items():
        command += [f"{address}=127.0.0.1", f"{port}={ports[name]}"]
    path = os.pathsep.join([str(python.parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR")}
    number = len(list(repository.parent.glob(f"{repository.name}-*.log")))
    log = repository.with_name(f"{repository.name}-{number}.log")
    with log.open("w") as out:
        process = subprocess.Popen(
            list(map(str, command)), stdout=out, stderr=out, text=True, env=environment,
            preexec_fn=functools.partial(end_with_parent, os.getpid()),
        )  # fmt: skip
    return TritonServer(process, ports, log)


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
    told = "\n".join([SERVER, *PINNED, *PACKAGES, (ROOT / "constraints.txt").read_text()])
    target = cache / f"triton-{hashlib.sha256(told.encode()).hexdigest()[:12]}-cp311"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "triton.lock").open("w") as lock:  # workers that want it at once wait for the one that fetches
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=cache) as directory:
                whole = Path(directory) / "packages"
                _install(Path(directory), whole)
                whole.rename(target)
    return target


def _install(directory: Path, whole: Path) -> None:
    pinned = {re.split(r"[\[=]", pin)[0] for pin in PINNED}
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
