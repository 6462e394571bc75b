"""The head on a GPU without TensorRT: python3 benchmarks/serve_gpu.py [--seconds 5] [--output FILE].

Eager torch, torch.compile, and TorchSession with the compiled sdst::RDSA, half precision and CUDA graphs, interleaved,
from numpy inputs to numpy outputs, at B 1, T 75, L 32 and at B 32, T 1024, L 32. Needs a GPU and a Python with torch
and numpy; without a built kernel also nvcc. Installs nothing and uses no network. Exit code 2: nothing could be run
here. It has not been run on a GPU yet. Random weights: times do not depend on them.

Shape letters: B videos, T clips, L tokens, K layers.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.dont_write_bytecode = True  # a machine that can run nothing is left as it was
sys.path[:0] = [str(ROOT), str(ROOT / "runtime"), str(ROOT / "export")]

import numpy as np  # noqa: E402

from sdst_runtime.bench.measure import interleave  # noqa: E402
from sdst_runtime.errors import DependencyError, InputError, SdstError  # noqa: E402
from sdst_runtime.files import write_json  # noqa: E402
from sdst_runtime.sessions.plugin_library import VARIABLE, find_plugin_library  # noqa: E402

SHAPES = ((1, 75, 32), (32, 1024, 32))  # B, T, L
GRAPHS = 4
TOLERANCE = 5e-3  # of half precision against float32, spans and scores within 0..1; 1.6e-4 on a CPU
BUILT = ROOT / "build" / "gpu-check" / "libsdst_plugins.so"


def main() -> int:
    parser = argparse.ArgumentParser(description="Time the head on a GPU: eager, compiled and served by TorchSession.")
    parser.add_argument("--seconds", type=float, default=5.0, help="of measuring each shape")
    parser.add_argument("--output", type=Path, help="write every sample to this JSON file")
    options = parser.parse_args()
    try:
        name = require_gpu()
        require_kernel()
        say(f"{name}, {', '.join(versions())}")
        results = [measure(*shape, options.seconds) for shape in SHAPES]
        if options.output:
            write_json(options.output, {"gpu": name, "versions": versions(), "results": results})
    except SdstError as error:
        sys.stderr.write(f"serve_gpu: {error}\n")
        return 2
    return 0


def require_gpu() -> str:
    """The GPU's name. Raises InputError without torch or a GPU."""
    try:
        import torch
    except ImportError as error:
        raise InputError(f"expected a Python with torch, got: {error}; run it with one that has torch") from error
    if not torch.cuda.is_available():
        raise InputError(f"no GPU: torch {torch.__version__} sees none; run it on a machine with one")
    return torch.cuda.get_device_name()


def require_kernel() -> None:
    """Find the compiled sdst::RDSA, or build it by nvcc as gpu_check.py does. Raises InputError when that fails."""
    try:
        find_plugin_library("cuda")
    except DependencyError:
        if not BUILT.is_file():
            command = [sys.executable, str(ROOT / "benchmarks" / "gpu_check.py"), "--parts", "build"]
            if subprocess.run(command, check=False).returncode:
                raise InputError("the kernel could not be built: see above; it needs nvcc") from None
        os.environ[VARIABLE] = str(BUILT)


def measure(B: int, T: int, L: int, seconds: float, on: str = "cuda") -> dict[str, object]:
    """Percentiles of each variant at one shape, printed too. Raises InputError when a variant's answers are off.

    `on` "cpu" tries the script where there is no GPU; its times are of the gather form and without graphs.
    """
    import torch

    from sdst_export.serving import serving_model
    from sdst_train.config import ModelConfig
    from sdst_train.model.sdst import SDST
    from sdst_train.model.torch_session import TorchSession

    torch.manual_seed(0)
    torch.compiler.reset()
    model, device = SDST(ModelConfig()).eval(), torch.device(on)
    served = serving_model(model, device, "fp16")
    compiled = serving_model(model, device, kernel=False)
    compiled.ground = torch.compile(compiled.ground, dynamic=False)
    sessions = {
        "torch eager, float32": TorchSession(serving_model(model, device, kernel=False)),
        "torch.compile, float32": TorchSession(compiled),
        "kernel, half": TorchSession(served),
        "kernel, half, CUDA graph": TorchSession(served, graphs=GRAPHS if on == "cuda" else 0),
    }
    inputs = random_inputs(B, T, L, model.config.layers, model.config.video_width, model.config.text_width)
    expected = sessions["torch eager, float32"].run(inputs)
    errors = {name: worst(expected, session.run(inputs)) for name, session in sessions.items()}
    if wrong := [f"{name} by {error:.2g}" for name, error in errors.items() if not error < TOLERANCE]:
        raise InputError(f"B {B} T {T} L {L}: answers differ from eager torch: {', '.join(wrong)}; nothing was timed")
    calls = {name: lambda session=session: session.run(inputs) for name, session in sessions.items()}
    samples = interleave(calls, seconds=seconds)
    say(f"\nB {B} T {T} L {L}, ms a call      p50      p90      p99   calls   max abs error")
    rows = {}
    for name, taken in samples.items():
        p50, p90, p99 = (1e3 * float(p) for p in np.percentile(taken, (50, 90, 99)))
        say(f"{name:<28}{p50:9.3f}{p90:9.3f}{p99:9.3f}{len(taken):8}   {errors[name]:.1e}")
        rows[name] = {"p50_ms": p50, "p90_ms": p90, "p99_ms": p99, "seconds": taken, "max_abs_error": errors[name]}
    return {"batch": B, "clips": T, "tokens": L, "variants": rows}


def random_inputs(B: int, T: int, L: int, K: int, V: int, X: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "video": rng.standard_normal((B, T, K, V), dtype=np.float32),
        "video_mask": np.ones((B, T), bool),
        "text": rng.standard_normal((B, K, L, X), dtype=np.float32),
        "text_mask": np.ones((B, L), bool),
    }


def worst(expected: dict[str, np.ndarray], got: dict[str, np.ndarray]) -> float:
    return max(float(np.abs(expected[name] - got[name]).max()) for name in expected)


def versions() -> list[str]:
    import torch

    return [f"Python {sys.version.split()[0]}", f"torch {torch.__version__}", f"CUDA {torch.version.cuda}"]


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
