"""`make test-matrix`: a plain installation with the oldest and the newest versions that pyproject.toml allows.

    oldest          Python 3.10, every requirement at its lower bound, which stands in pyproject.toml alone
    newest-3.12     Python 3.12, the newest that pip finds within the bounds, and the extra serve
    newest-3.13     Python 3.13, the same

Each job has an environment of its own under build/matrix/, kept until pyproject.toml changes; the newest ones are
upgraded every time. Into it goes the wheel of this checkout, without torch: of the extras only serve is tried. There
`sdst doctor`, `ground`, `data check` and `eval` run on a world that the pinned environment makes
(tests/matrix_world.py) and must answer what they answer there; then come the tests below. A job whose interpreter is
not found is skipped, and says so.
Run by the pinned Python (3.11 or newer: tomllib).

    .venv/bin/python .ci/matrix.py [JOB ...]
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / "build" / "matrix"
WORLD = HOME / "world"
PACKAGES = ("sdst", "export", "runtime", "calib", "sdst_train")  # what a wheel is built of
TOOLS = ("pytest", "hypothesis")  # of the extra test: all that the tests below need
TESTS = (
    "runtime/media/test_media", "runtime/media/test_colours", "runtime/data/test_annotations",
    "runtime/data/test_data_check", "runtime/data/test_stores", "runtime/metrics/test_metrics",
    "runtime/doctor/test_doctor", "verbs/test_feature_commands",
)  # fmt: skip
OF_EXTRAS = {"serve": ("runtime/serving/test_parts", "runtime/serving/test_http")}
# Of test_doctor those that need neither a compiler nor a bundle that torch made.
CHOSEN = "not test_doctor or colours or decod or annotation or model_is_run"
SHOWN = ("av", "onnxruntime", "numpy", "pydantic", "tokenizers", "tyro")
HELP = """
from sdst.cli import VERBS, main
for verb in [verb for verb, (_, extra, _) in VERBS.items() if not extra]:
    try:
        code = main([*verb.split(), "--help"])
    except SystemExit as end:
        code = end.code
    assert code == 0, (verb, code)
"""
ABSOLUTE, RELATIVE = 1e-3, 1e-3  # what answers may differ by: other versions add up in another order


@dataclass(frozen=True)
class Job:
    """One environment."""

    name: str
    python: str  # "3.10"
    oldest: bool = False
    extras: tuple[str, ...] = ()


JOBS = (Job("oldest", "3.10", oldest=True), Job("newest-3.12", "3.12", extras=("serve",)), Job("newest-3.13", "3.13"))


@dataclass(frozen=True)
class Result:
    """What a job found: `failed` is empty when all was well; `skipped` says why it did not run."""

    job: Job
    versions: str = ""
    ran: str = ""
    failed: str = ""
    skipped: str = ""
    took_s: float = 0.0

    def line(self) -> str:
        state = "FAILED" if self.failed else "skipped" if self.skipped else "passed"
        said = self.skipped or f"{self.versions} | {self.ran}"
        return f"{self.job.name:<12} | Python {self.job.python} | {state} | {said} | {self.took_s:.0f} s"


class JobFailed(Exception):
    """A step went wrong: its output."""


def main(names: list[str]) -> int:
    unknown = set(names) - {job.name for job in JOBS}
    if unknown:
        sys.exit(f"unknown job {', '.join(sorted(unknown))}: expected {', '.join(job.name for job in JOBS)}")
    chosen = [job for job in JOBS if not names or job.name in names]
    started = time.monotonic()
    HOME.mkdir(parents=True, exist_ok=True)
    wheel = build_wheel()
    shutil.rmtree(WORLD, ignore_errors=True)
    run([sys.executable, str(ROOT / "tests" / "matrix_world.py"), str(WORLD)], ROOT / "tests")
    print(f"matrix: wheel and world made in {time.monotonic() - started:.0f} s", flush=True)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda job: try_job(job, wheel), chosen))
    for result in results:
        if result.failed:
            print(f"\n---- {result.job.name}\n{result.failed}")
    print()
    for result in results:
        print(result.line())
    print(f"matrix: {time.monotonic() - started:.0f} s in all", flush=True)
    return int(any(result.failed for result in results))


def try_job(job: Job, wheel: Path) -> Result:
    started = time.monotonic()
    interpreter = find_python(job.python)
    if interpreter is None:
        return Result(job, skipped=f"no python{job.python} on PATH or in ~/.pyenv/versions that can make environments")
    versions, ran = "", []
    try:
        python = environment(job, interpreter, wheel)
        versions = shown_versions(python)
        ran = check(job, python)
    except JobFailed as error:
        return Result(job, versions, "", failed=str(error), took_s=time.monotonic() - started)
    return Result(job, versions, ", ".join(ran), took_s=time.monotonic() - started)


# ---------------------------------------------------------------- environments


def lower_bounds(requirements: list[str]) -> list[str]:
    """Each requirement at the version after its `>=`: "av>=17,<20" becomes "av==17"."""
    pins = []
    for requirement in requirements:
        found = re.match(r"([\w-]+)(?:\[[^\]]*\])?.*?>=([\w.]+)", requirement)
        if found is None:
            sys.exit(f"pyproject.toml: expected a lower bound, >=, in {requirement!r}; write one that was tried")
        pins.append(f"{found[1]}=={found[2]}")
    return pins


def wanted(job: Job) -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    tools = [line for line in optional["test"] if re.match(r"[\w-]+", line)[0] in TOOLS]
    asked = [*project["dependencies"], *(line for extra in job.extras for line in optional[extra]), *tools]
    return lower_bounds(asked) if job.oldest else asked


def find_python(version: str) -> Path | None:
    """An interpreter that can make environments; a shim of pyenv may be none."""
    pyenv = sorted(
        (Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python"),
        key=lambda path: [int(part) for part in re.findall(r"\d+", path.parents[1].name)],
    )
    on_path = shutil.which(f"python{version}")
    program = f"import ensurepip, sys, venv; sys.exit(sys.version_info[:2] != {tuple(map(int, version.split('.')))})"
    for path in (*([Path(on_path)] if on_path else []), *reversed(pyenv)):
        if subprocess.run([path, "-c", program], capture_output=True).returncode == 0:
            return path
    return None


def environment(job: Job, interpreter: Path, wheel: Path) -> Path:
    """The job's interpreter, with the wheel and what it needs. The stamp comes last."""
    place, asked = HOME / job.name, wanted(job)
    python, stamp = place / "bin" / "python", place / "stamp"
    told = (ROOT / "pyproject.toml").read_text() + repr((asked, str(interpreter)))
    digest = hashlib.sha256(told.encode()).hexdigest()
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    if not stamp.is_file() or stamp.read_text() != digest:
        shutil.rmtree(place, ignore_errors=True)
        run([str(interpreter), "-m", "venv", str(place)], HOME)
        run([*pip, "--only-binary", ":all:", *asked], HOME)
        stamp.write_text(digest)
    elif not job.oldest:
        run([*pip, "--only-binary", ":all:", "--upgrade", "--upgrade-strategy", "eager", *asked], HOME)
    run([*pip, "--no-deps", "--force-reinstall", str(wheel)], HOME)
    run([str(python), "-m", "pip", "check"], HOME)
    return python


def build_wheel() -> Path:
    """The wheel of this checkout, made from a copy, so that nothing left in build/ slips in."""
    shutil.rmtree(HOME / "wheel", ignore_errors=True)
    with tempfile.TemporaryDirectory() as place:
        for name in PACKAGES:
            shutil.copytree(ROOT / name, Path(place) / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, place)
        run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(HOME / "wheel"), place], HOME)
    (wheel,) = (HOME / "wheel").glob("*.whl")
    return wheel


def shown_versions(python: Path) -> str:
    program = f"from importlib.metadata import version\nprint(', '.join(f'{{n}} {{version(n)}}' for n in {SHOWN}))"
    return run([str(python), "-c", program], HOME).strip()


# ---------------------------------------------------------------- what is tried


def check(job: Job, python: Path) -> list[str]:
    """What was done. Raises JobFailed with the output of the first thing that went wrong."""
    place = HOME / job.name / "run"  # not the checkout, whose packages would be found before the installed ones
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    sdst = str(python.parent / "sdst")
    expected = json.loads((WORLD / "expected.json").read_text())
    run([str(python), "-c", "import importlib.util as u, sys; sys.exit(u.find_spec('torch') is not None)"], place)
    run([str(python), "-c", HELP], place)
    run([sdst, "doctor"], place)
    run([sdst, "data", "check", str(WORLD / "config.json")], place)
    for name, command in json.loads((WORLD / "commands.json").read_text()).items():
        got = json.loads(run([sdst, *command], place))
        for fault in differences(got, expected[name], name):
            raise JobFailed(f"sdst {' '.join(command)}\n{fault}")
    names = [*TESTS, *(name for extra in job.extras for name in OF_EXTRAS[extra])]
    tests = [str(ROOT / "tests" / f"{name}.py") for name in names]
    pytest = [str(python.parent / "pytest"), "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
    said = run([*pytest, "-p", "no:cacheprovider", "-k", CHOSEN, *tests], place)
    return [
        "help of each verb",
        "doctor",
        "data check",
        *expected,
        f"tests: {said.strip().splitlines()[-1].strip('= ')}",
    ]


def differences(got: object, expected: object, where: str) -> list[str]:
    """A line for everything in which two JSON values differ by more than rounding."""
    if isinstance(expected, dict) and isinstance(got, dict) and got.keys() == expected.keys():
        return [line for key in expected for line in differences(got[key], expected[key], f"{where}.{key}")]
    if isinstance(expected, list) and isinstance(got, list) and len(got) == len(expected):
        pairs = enumerate(zip(got, expected, strict=True))
        return [line for i, (mine, theirs) in pairs for line in differences(mine, theirs, f"{where}[{i}]")]
    if isinstance(expected, float) and isinstance(got, (int, float)):
        if math.isclose(got, expected, rel_tol=RELATIVE, abs_tol=ABSOLUTE):
            return []
    elif got == expected:
        return []
    return [f"{where}: expected {expected!r} as in the pinned environment, got {got!r}"]


def run(command: list[str], place: Path) -> str:
    """Standard output. Raises JobFailed with all output when the command fails."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "SDST_TEST_WORLD": str(WORLD)}
    env.pop("PYTHONPATH", None)
    done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        told = "\n".join([*done.stdout.splitlines()[-60:], *done.stderr.splitlines()[-40:]])
        raise JobFailed(f"{' '.join(map(str, command))}\nended with {done.returncode}:\n{told}")
    return done.stdout


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except JobFailed as error:
        sys.exit(str(error))
