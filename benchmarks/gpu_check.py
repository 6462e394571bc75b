"""Everything about sdst::RDSA that needs a GPU: make gpu-check PYTHON=python3 [ARGS="--parts build,bench --out DIR"].

For any machine with a GPU, nvcc and a Python that has torch and numpy. Installs nothing, uses no network, runs from the
checkout; under 8 minutes, also in parts:
  build        the library and rdsa_dev for this GPU, by cmake or else by nvcc alone, into build/gpu-check
  tests        tests/train/model/test_rdsa_cuda.py (pytest)
  sanitizers   compute-sanitizer memcheck and racecheck on `rdsa_dev --check`
  dev          rdsa_dev: kernel variants, checked and timed
  bench        benchmarks/rdsa.py
Each part's output goes to DIR/PART.log, the summary to DIR/summary.json (DIR is build/gpu-check/report unless given).
Exit code: 0 all that ran is well, 1 a part failed, 2 nothing could be run here.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.dont_write_bytecode = True  # a machine that can run nothing is left as it was
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "runtime"), str(ROOT / "benchmarks")]

from commands import run_command, say  # noqa: E402

from sdst_runtime.errors import InputError, SdstError  # noqa: E402
from sdst_runtime.files import make_directory, write_json, write_text  # noqa: E402

BUILD = ROOT / "build" / "gpu-check"
LIBRARY, DEV = BUILD / "libsdst_plugins.so", BUILD / "rdsa_dev"
TOTAL_S = 470.0
MOST_S = {"build": 150.0, "tests": 180.0, "sanitizers": 100.0, "dev": 60.0, "bench": 200.0}
TAIL = 15  # lines of a failed part that are shown


@dataclass(frozen=True)
class Gpu:
    name: str
    architecture: str  # 90


@dataclass(frozen=True)
class PartResult:
    status: str  # "well", "failed" or "not run"
    detail: str
    seconds: float


class PartFailed(SdstError):
    """A part ran and did not end well."""


class PartNotRun(SdstError):
    """This machine lacks what a part needs."""


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        parts, out = parse(arguments)
        gpu, nvcc = find_gpu(), find_nvcc()
    except SdstError as error:
        sys.stderr.write(f"gpu-check: {error}\n")
        return 2
    say(f"gpu-check: {gpu.name}, sm_{gpu.architecture}, {nvcc}, {', '.join(parts)}")
    end = time.monotonic() + TOTAL_S
    results = {part: run_part(Part(part, out, gpu, nvcc, end)) for part in parts}
    write_json(out / "summary.json", {"gpu": asdict(gpu), "parts": {name: asdict(r) for name, r in results.items()}})
    say("")
    for name, result in results.items():
        say(f"{name:<12}{result.status:<10}{result.seconds:6.1f} s  {result.detail}")
    say(f"logs and summary.json: {out}")
    return int(any(result.status == "failed" for result in results.values()))


def parse(arguments: Sequence[str] | None) -> tuple[list[str], Path]:
    """Parts in their order, and the folder of the report. Raises InputError for a part that is none."""
    parser = argparse.ArgumentParser(description="Everything about sdst::RDSA that needs a GPU.")
    parser.add_argument("--parts", default=",".join(PARTS), help="which of them, by commas")
    parser.add_argument("--out", type=Path, default=BUILD / "report", help="folder for logs and numbers")
    options = parser.parse_args(arguments)
    asked = options.parts.split(",")
    for part in asked:
        if part not in PARTS:
            raise InputError(f"--parts: expected some of {','.join(PARTS)}, got {part!r}")
    return [part for part in PARTS if part in asked], options.out.resolve()


def find_gpu() -> Gpu:
    """What torch sees, asked in another process: this one stays free of CUDA. Raises InputError without a GPU."""
    question = (
        "import torch; assert torch.cuda.is_available(), f'torch {torch.__version__} sees no GPU'; "
        "print(torch.cuda.get_device_name(), *torch.cuda.get_device_capability(), sep='\\n')"
    )
    answer = subprocess.run([sys.executable, "-c", question], capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        why = (answer.stderr.strip().splitlines() or ["no answer"])[-1]
        raise InputError(f"expected a GPU and a Python with torch for CUDA, got: {why}; run it on a machine with a GPU")
    name, major, minor = answer.stdout.splitlines()[-3:]
    return Gpu(name, major + minor)


def find_nvcc() -> Path:
    """Raises InputError when there is none."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [str(Path(home) / "bin") for home in homes if home]
    found = os.environ.get("CUDACXX") or shutil.which("nvcc") or shutil.which("nvcc", path=os.pathsep.join(folders))
    if not found:
        raise InputError(f"expected nvcc on PATH or in {', '.join(folders)}, found none; set CUDA_HOME")
    return Path(found)


@dataclass(frozen=True)
class Part:
    """A part that is about to run, and the commands it runs."""

    name: str
    out: Path
    gpu: Gpu
    nvcc: Path
    end: float  # of the whole check, by time.monotonic()

    def log(self) -> Path:
        return self.out / f"{self.name}.log"


def run_part(part: Part) -> PartResult:
    """Run one part and say how it went; what one finds does not keep the next from running."""
    say(f"{part.name} ...")
    start = time.monotonic()
    try:
        status, detail = "well", PARTS[part.name](part)
    except PartNotRun as error:
        status, detail = "not run", str(error)
    except SdstError as error:
        status, detail = "failed", str(error)
    result = PartResult(status, detail, round(time.monotonic() - start, 1))
    say(f"{part.name}: {status} after {result.seconds:.1f} s: {detail}")
    return result


def build(part: Part) -> str:
    cmake = find_cmake()
    commands = cmake_commands(part, cmake) if cmake else nvcc_commands(part)
    make_directory(BUILD)
    run_commands(part, commands)
    return f"{LIBRARY.relative_to(ROOT)}, {DEV.relative_to(ROOT)} by {'cmake' if cmake else 'nvcc'}"


def find_cmake() -> str | None:
    """A cmake that CMakeLists.txt accepts; without one nvcc does it alone."""
    cmake = shutil.which("cmake")
    if not cmake or not (shutil.which("make") or shutil.which("ninja")):
        return None
    said = subprocess.run([cmake, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"version (\d+)\.(\d+)", said)
    return cmake if found and (int(found[1]), int(found[2])) >= (3, 24) else None


def cmake_commands(part: Part, cmake: str) -> list[list[str]]:
    configure = [cmake, "-S", str(ROOT), "-B", str(BUILD), "-DSDST_CUDA=ON", "-DSDST_TESTS=OFF"]
    configure += [f"-DCMAKE_CUDA_COMPILER={part.nvcc}", f"-DCMAKE_CUDA_ARCHITECTURES={part.gpu.architecture}-real"]
    targets = ["--target", "sdst_plugins", "rdsa_dev", "--parallel"]
    return [configure, [cmake, "--build", str(BUILD), *targets]]


def nvcc_commands(part: Part) -> list[list[str]]:
    """The same two files without cmake."""
    architecture = part.gpu.architecture
    shared = [str(part.nvcc), "-O3", "-std=c++17", f"-arch=sm_{architecture}", "-I", str(ROOT / "plugins" / "include")]
    release = subprocess.run([str(part.nvcc), "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"release ([\d.]+)", release)
    told = {"SDST_DEVICE": '"cuda"', "SDST_CUDA_VERSION": f'"{found[1] if found else ""}"'}
    told |= {"SDST_ARCHITECTURES": f'"{architecture}"', "SDST_PTX": '""'}
    sources = [path for path in sorted((ROOT / "plugins" / "src").glob("*.c*")) if path.name != "rdsa_host.cpp"]
    library = [*shared, "-shared", "-cudart", "static", "-Xcompiler", "-fPIC,-fvisibility=hidden"]
    library += ["-Xlinker", f"--version-script={ROOT / 'plugins' / 'cmake' / 'exports.map'}"]
    library += [f"-D{name}={value}" for name, value in told.items()]
    return [
        [*library, *map(str, sources), "-o", str(LIBRARY)],
        [*shared, str(ROOT / "plugins" / "dev" / "rdsa.cu"), "-o", str(DEV)],
    ]


def tests(part: Part) -> str:
    require_built(LIBRARY)
    if importlib.util.find_spec("pytest") is None:
        raise PartNotRun("pytest not found")
    # No conftest: it needs packages that only the tests of other rooms do.
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "--noconftest",
        "-rs",
        "tests/train/model/test_rdsa_cuda.py",
    ]
    output = run_commands(part, [command])
    counts = output.strip().splitlines()[-1].strip("= ")
    if not re.search(r"\d+ passed", counts):
        raise PartFailed(f"expected tests that pass, got: {counts}; see {part.log()}")
    return counts


def sanitizers(part: Part) -> str:
    require_built(DEV)
    places = [part.nvcc.parent, part.nvcc.resolve().parent, Path("/usr/local/cuda/bin")]
    tool = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path=os.pathsep.join(map(str, places))
    )
    if not tool:
        raise PartNotRun("compute-sanitizer not found")
    kinds = ("memcheck", "racecheck")
    run_commands(part, [[tool, "--tool", kind, "--error-exitcode", "1", str(DEV), "--check"] for kind in kinds])
    return f"{' and '.join(kinds)} found nothing"


def dev(part: Part) -> str:
    require_built(DEV)
    run_commands(part, [[str(DEV)]])
    return "all variants agree with the reference; the table is in dev.log"


def bench(part: Part) -> str:
    require_built(LIBRARY)
    command = [sys.executable, "benchmarks/rdsa.py", "--output", str(part.out)]
    output = run_commands(part, [command])
    say(output[output.find("| target") :].rstrip())
    return "rdsa.json, rdsa.png and bench.log"


PARTS: dict[str, Callable[[Part], str]] = {
    "build": build,
    "tests": tests,
    "sanitizers": sanitizers,
    "dev": dev,
    "bench": bench,
}


def require_built(path: Path) -> None:
    if not path.is_file():
        raise PartFailed(f"expected {path}, found none; run the part build first")


def run_commands(part: Part, commands: Sequence[Sequence[str]]) -> str:
    """Run commands one after the other, keep what they print in the part's log and return it.

    Raises PartFailed when one exits with another code than 0 or the part's time is over.
    """
    stop = min(part.end, time.monotonic() + MOST_S[part.name])
    output = ""
    try:
        for command in commands:
            output += f"$ {shlex.join(command)}\n"
            code, text, _ = run_command(command, stop - time.monotonic(), environment())
            output += text
            if code is None:
                raise PartFailed(f"{Path(command[0]).name} was stopped: the part's time was over; see {part.log()}")
            if code != 0:
                tail = "\n".join(f"  {line}" for line in text.strip().splitlines()[-TAIL:])
                say(tail)
                raise PartFailed(f"{Path(command[0]).name} exited with {code}; see {part.log()}")
    finally:
        write_text(part.log(), output)
    return output


def environment() -> dict[str, str]:
    """Of every command: this checkout, and the library that was built."""
    return os.environ | {
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "runtime"), os.environ.get("PYTHONPATH", ""))),
        "PYTHONDONTWRITEBYTECODE": "1",
        "SDST_PLUGINS": str(LIBRARY),
    }


if __name__ == "__main__":
    sys.exit(main())
