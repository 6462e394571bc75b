"""Everything about TensorRT engines that needs a device: make device-check PYTHON=python3 [ARGS="BUNDLE --out DIR"].

For a machine with TensorRT, pycuda and the plugin (docs/deploy.md says how to get there). Takes a bundle of ONNX files,
by default demo-out/bundle16, and writes ONE file to send back, DIR/device-check.json (DIR is build/device-check):
machine, versions and, step by step, what passed, how long it took, and the one-line error of what did not.
  plugin    sdst plugins info
  doctor    sdst doctor BUNDLE: what this machine has
  build     sdst build BUNDLE --out DIR/engines
  engines   sdst doctor DIR/engines: every engine is loaded and run
  parity    the engines against ONNX Runtime on random inputs (device_parity.py): the error of each output
  ground    sdst ground of a short clip with both bundles: the best moments
  bench     sdst bench BUNDLE DIR/engines
Each step is a process of its own: one that fails, crashes or hangs leaves the others alone.
Exit code: 0 all passed, 1 a step did not, 2 there is no bundle, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "runtime"), str(ROOT / "benchmarks")]

from commands import run_command, say  # noqa: E402
from device_parity import summary  # noqa: E402

from sdst_runtime.bench.measure import NOT_MEASURED  # noqa: E402
from sdst_runtime.errors import InputError, SdstError  # noqa: E402
from sdst_runtime.files import make_directory, write_json  # noqa: E402
from sdst_runtime.grounding.bundle import MANIFEST, MODELS, Bundle  # noqa: E402
from sdst_runtime.machine import gpus, machine_facts  # noqa: E402

DEFAULT_BUNDLE = ROOT / "demo-out" / "bundle16"
HOW_TO_MAKE_ONE = (
    "make demo  and  sdst export demo-out/run/best.safetensors --backbone sdst/demo/assets/tiny_backbone.safetensors"
    " --precision fp16 --out demo-out/bundle16"
)
CLIP = ROOT / "runtime" / "sdst_runtime" / "doctor" / "assets" / "colours.mp4"
SENTENCE = "a red circle moves to the left"
PACKAGES = (
    *("sdst-vtg", "numpy", "onnxruntime", "onnx", "polygraphy", "torch", "pycuda"),
    *("tensorrt", "tensorrt-cu12", "tensorrt-cu13"),
)


@dataclass(frozen=True)
class Check:
    """What is checked, and where things go."""

    bundle: Path
    out: Path

    @property
    def engines(self) -> Path:
        return self.out / "engines"


@dataclass(frozen=True)
class Step:
    """One step: its commands, run one after the other until one fails, and what of their stdout is kept."""

    commands: Callable[[Check], Sequence[Sequence[str]]]
    read: Callable[[Check, list[str]], Any]
    most_s: float
    fault: Callable[[Any], str] = lambda found: (
        ""
    )  # one line on what was read, where commands that end well may hide one
    needs_engines: bool = False


@dataclass(frozen=True)
class Result:
    """How a step went. `message` is one line, empty when it passed; `found` is what it measured."""

    status: str  # passed, failed, not run
    seconds: float = 0.0
    message: str = ""
    found: Any = None
    commands: list[str] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Everything about TensorRT engines that needs a device.")
    parser.add_argument("bundle", type=Path, nargs="?", default=DEFAULT_BUNDLE, help="bundle of ONNX files")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "device-check", help="folder of the report")
    options = parser.parse_args(arguments)
    check, report = Check(options.bundle.resolve(), options.out.resolve()), options.out.resolve() / "device-check.json"
    try:
        facts = facts_of(check)
        if check.engines.exists() and not report.is_file():
            raise InputError(f"--out {check.out}: holds a folder engines that is of no earlier check; choose another")
        make_directory(check.out)
    except SdstError as error:
        sys.stderr.write(f"device-check: {error}\n")
        return 2
    shutil.rmtree(check.engines, ignore_errors=True)  # of an earlier check
    results: dict[str, Result] = {}
    for name, step in STEPS.items():
        say(f"{name} ...")
        try:
            results[name] = run_step(step, check, results)
        except KeyboardInterrupt:
            say(f"interrupted; what was done before is in {report}")
            return 130
        say(f"{name}: {results[name].status} after {results[name].seconds:.1f} s  {results[name].message}")
        steps = {done: asdict(result) for done, result in results.items()}
        write_json(report, {"format": 1, **facts, "passed": all_passed(results), "steps": steps})  # after every step
    say(f"send back: {report}")
    return int(not all_passed(results))


def all_passed(results: Mapping[str, Result]) -> bool:
    return results.keys() == STEPS.keys() and all(result.status == "passed" for result in results.values())


def facts_of(check: Check) -> dict[str, Any]:
    """Machine, versions and bundle. Raises InputError where there is no bundle of ONNX files."""
    if not (check.bundle / MANIFEST).is_file():
        raise InputError(
            f"{check.bundle}: expected a bundle of ONNX files, there is none; make one with  {HOW_TO_MAKE_ONE}"
        )
    manifest = Bundle.open(check.bundle).manifest
    if any(not name.endswith(".onnx") for name in manifest.models.values()):
        raise InputError(
            f"{check.bundle}: expected a bundle of ONNX files, got one of engines; name what they were built from"
        )
    jetson = Path("/etc/nv_tegra_release")
    return {
        "machine": dict(machine_facts()) | {"system": platform.platform(), "machine": platform.machine()},
        "gpus": [asdict(gpu) for gpu in gpus()],
        "jetson": jetson.read_text().strip() if jetson.is_file() else "",
        "versions": {name: installed(name) for name in PACKAGES},
        "commit": commit(),
        "bundle": {"path": str(check.bundle), "files": dict(manifest.files)},
    }


def installed(package: str) -> str:
    """Its version; empty when it is not installed under this name."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def commit() -> str:
    """Of this checkout, with -dirty where files were changed; empty without git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


# ---------------------------------------------------------------- steps


def sdst(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "sdst", *map(str, arguments)]


def read_text(_: Check, outputs: list[str]) -> list[str]:
    return [line.strip() for line in outputs[-1].splitlines() if line.strip()]


def read_json(_: Check, outputs: list[str]) -> Any:
    return json.loads(outputs[-1])


def read_sidecars(check: Check, _: list[str]) -> dict[str, Any]:
    """Of each engine: its size, what it was built on and how long it took (in an earlier run, where it was cached)."""
    kept = ("kind", "precision", "machine", "limits", "flags", "plan_bytes", "build_s")
    sidecars = {path.name: json.loads(path.read_text()) for path in sorted(check.engines.glob("*.plan.json"))}
    return {name: {key: sidecar.get(key) for key in kept} for name, sidecar in sidecars.items()}


def read_moments(_: Check, outputs: list[str]) -> dict[str, Any]:
    """The best moment that each bundle finds."""
    best = [json.loads(text)["results"][0]["moments"][0] for text in outputs]
    return dict(zip(("ONNX Runtime", "TensorRT"), best, strict=True))


def read_bench(check: Check, _: list[str]) -> Any:
    """bench.json without the single calls."""
    found = json.loads((check.out / "bench" / "bench.json").read_text())
    found["timings"] = [{key: value for key, value in t.items() if key != "seconds"} for t in found["timings"]]
    return found


def doctor_fault(found: Any) -> str:
    return next((f"{one['name']}: {one['found']}" for one in found["checks"] if one["state"] == "fault"), "")


def bench_fault(found: Any) -> str:
    """The first variant, or stage of one, that was not measured."""
    variants = (f"{name}: {what}" for name, what in found["variants"].items() if what.startswith(NOT_MEASURED))
    timings = (
        f"{timing['variant']}: {timing['stage']}: {timing[NOT_MEASURED]}"
        for timing in found["timings"]
        if timing["stage"] in MODELS and timing.get(NOT_MEASURED)
    )
    return next(chain(variants, timings), "")


def bench(check: Check) -> list[list[str]]:
    engines = [check.engines] if (check.engines / MANIFEST).is_file() else []
    return [sdst("bench", check.bundle, *engines, "--out", check.out / "bench")]


def parity(check: Check) -> list[list[str]]:
    return [[sys.executable, str(ROOT / "benchmarks" / "device_parity.py"), str(check.bundle), str(check.engines)]]


def ground(check: Check) -> list[list[str]]:
    return [sdst("ground", CLIP, SENTENCE, "--json", "--bundle", place) for place in (check.bundle, check.engines)]


STEPS = {
    "plugin": Step(lambda check: [sdst("plugins", "info")], read_text, 60),
    "doctor": Step(lambda check: [sdst("doctor", check.bundle, "--json")], read_json, 300),
    "build": Step(lambda check: [sdst("build", check.bundle, "--out", check.engines)], read_sidecars, 7200),
    "engines": Step(lambda check: [sdst("doctor", check.engines, "--json")], read_json, 600, doctor_fault, True),
    "parity": Step(parity, read_json, 1800, summary, True),
    "ground": Step(ground, read_moments, 600, needs_engines=True),
    "bench": Step(bench, read_bench, 1800, bench_fault),
}


def run_step(step: Step, check: Check, before: Mapping[str, Result]) -> Result:
    """Run one step and say how it went; nothing that it does ends this process."""
    if step.needs_engines and before["build"].status != "passed":
        return Result("not run", message=f"needs the engines, and build did not pass: {before['build'].message}")
    commands, outputs, message = step.commands(check), [], ""
    start = time.monotonic()
    for command in commands:
        code, output, errors = run_command(command, start + step.most_s - time.monotonic(), environment(), apart=True)
        outputs.append(output)
        message = "" if code == 0 else why(code, errors, step.most_s)
        if message:
            break
    seconds = round(time.monotonic() - start, 1)
    found, shown = None, [" ".join(command) for command in commands]
    try:
        found = step.read(check, outputs)
        message = step.fault(found) or message
    except (OSError, ValueError, KeyError, IndexError) as error:
        message = message or f"its output could not be read: {type(error).__name__}: {error}"
    return Result("failed" if message else "passed", seconds, message, found, shown)


def why(code: int | None, errors: str, most_s: float) -> str:
    """One line on a command that did not end well; code None: it was stopped after `most_s` seconds."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    told = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "no message")
    if code is None:
        return f"stopped after {most_s:g} s; its last line: {told}"
    return told.removeprefix("error: ") if code > 0 else f"ended by signal {-code}; its last line: {told}"


def environment() -> dict[str, str]:
    """Of every command: this checkout's rooms come first."""
    folders = (ROOT, *(ROOT / room for room in ("calib", "export", "runtime")), os.environ.get("PYTHONPATH", ""))
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, map(str, folders)))}


if __name__ == "__main__":
    sys.exit(main())
