"""sdst::RDSA on a GPU: the kernel against torch: python benchmarks/rdsa.py [--quick] [--output DIR].

Variants: the compiled kernel (torch.ops.sdst.rdsa), the gather form and a grid_sample form in eager torch, the gather
form under torch.compile; each as called and as the replay of a CUDA graph. Beside them an empty kernel.
Three times of each, in microseconds:
  warm   on the device, a call of several that follow one another: the stream is held until all of them are queued
  cold   on the device, one call after all of L2 was overwritten; the time of two events is in it
  call   on the host, from an idle GPU to the result
The floor is the time of a large copy on the device that moves as many bytes as these inputs force any kernel to
(rdsa_forms.moved_bytes). Rounds run every variant once; no sample is dropped. Needs CUDA, torch, numpy and the library
that SDST_PLUGINS names or `sdst plugins build` made; matplotlib for the picture. Exit code 2 without CUDA or library.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rdsa_forms import Inputs, Size, grid_form, make_inputs, moved_bytes
from rdsa_report import plot, table, targets

from sdst_runtime.errors import SdstError
from sdst_runtime.files import write_bytes, write_json
from sdst_runtime.machine import machine_facts
from sdst_runtime.sessions.plugin_library import open_plugin_library
from sdst_train.model import rdsa_op  # noqa: F401  defines torch.ops.sdst.rdsa
from sdst_train.model.rdsa import rdsa

MODES = ("warm", "cold", "call")
# Those with targets come first: compilation stops when its time is over.
SIZES = [Size(1, T, M) for T in (75, 256, 1024) for M in (10, 30, 100)]
SIZES += [Size(B, T, M) for B in (256, 32, 8) for T in (1024, 256, 75) for M in (100, 30, 10)]
QUICK = [Size(1, 75, 10), Size(1, 75, 30), Size(1, 1024, 100), Size(256, 1024, 100), Size(32, 75, 30)]
COMPILE_S = {False: 70.0, True: 20.0}  # by quick
ROUNDS_S = 1.0  # of measuring a size
LEAST_ROUNDS, MOST_ROUNDS = 10, 60
SAMPLE_US = 400.0  # calls of a warm sample take about this long, and are at most:
MOST_CALLS = 10  # an eager call queues tens of kernels, and a full queue would stop the host

Run = Callable[[], Any]


def main() -> int:
    parser = argparse.ArgumentParser(description="sdst::RDSA on a GPU: the kernel against torch.")
    parser.add_argument("--quick", action="store_true", help="five sizes instead of 36")
    parser.add_argument("--output", type=Path, help="folder for rdsa.json and rdsa.png")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.stderr.write(
            "benchmarks/rdsa.py: expected a CUDA device, torch sees none; run it on a machine with a GPU\n"
        )
        return 2
    try:
        library = open_plugin_library("cuda")
    except SdstError as error:
        sys.stderr.write(f"benchmarks/rdsa.py: {error}\n")
        return 2
    result = {"machine": machine() | {"library": str(library.info)}} | measure_all(arguments.quick)
    for line in table(result):
        say(line)
    if arguments.output is not None:
        write_json(arguments.output / "rdsa.json", result)
        picture = plot(result)
        if picture is not None:
            write_bytes(arguments.output / "rdsa.png", picture)
        say(f"written to {arguments.output}")
    return 0


def measure_all(quick: bool) -> dict[str, Any]:
    """Bandwidth, every size in order, and the targets."""
    with torch.inference_mode():
        stopwatch = Stopwatch()
        bytes_per_us = stopwatch.copy_bytes_per_us()
        compiling = Compiler(COMPILE_S[quick])
        sizes = [measure_size(size, stopwatch, compiling, bytes_per_us) for size in (QUICK if quick else SIZES)]
    return {"copy_gb_per_s": bytes_per_us / 1e3, "sizes": sizes, "targets": targets(sizes)}


def measure_size(size: Size, stopwatch: Stopwatch, compiling: Compiler, bytes_per_us: float) -> dict[str, Any]:
    """Bytes, floor and {variant: {mode: percentiles}} of one size; a variant that could not run says why instead."""
    inputs = make_inputs(size, torch.device("cuda"))
    bytes_ = moved_bytes(inputs)
    runs, missing = prepare(inputs, compiling)
    samples = stopwatch.rounds(runs)
    variants: dict[str, Any] = {name: {mode: summary(modes[mode]) for mode in MODES} for name, modes in samples.items()}
    variants |= {name: {"not measured": reason} for name, reason in missing.items()}
    floor_us = bytes_ / bytes_per_us
    for variant in variants.values():
        if "cold" in variant:
            variant["fraction_of_floor"] = floor_us / variant["cold"]["p50"]
    kernel = variants["kernel"]
    say(f"{size}: kernel warm {kernel['warm']['p50']:.2f}, cold {kernel['cold']['p50']:.2f}, floor {floor_us:.2f} us")
    del runs
    torch.cuda.empty_cache()
    return {"B": size.B, "T": size.T, "M": size.M, "bytes": bytes_, "floor_us": floor_us, "variants": variants}


def prepare(inputs: Inputs, compiling: Compiler) -> tuple[dict[str, Run], dict[str, str]]:
    """What can run here, checked against the gather form and warmed up; and why the others cannot."""
    arguments = inputs.arguments()
    expected = rdsa(*arguments)
    forms: dict[str, Callable[[], Run]] = {
        "empty kernel": lambda: lambda: torch.cuda._sleep(0),
        "kernel": lambda: lambda: torch.ops.sdst.rdsa(*arguments),
        "eager gather": lambda: lambda: rdsa(*arguments),
        "eager grid_sample": lambda: lambda: grid_form(*arguments),
        "torch.compile": lambda: compiling.compile(arguments),
    }
    runs: dict[str, Run] = {}
    missing: dict[str, str] = {}
    for name, make in forms.items():
        try:
            run = make()
            out = run()
            if out is not None:
                torch.testing.assert_close(out, expected, rtol=2e-3, atol=4e-3)
            runs[name], runs[f"{name}, graph"] = run, captured(run)
        except (torch.OutOfMemoryError, AssertionError, NotMeasured) as error:
            if name == "kernel":
                raise
            missing[name] = missing[f"{name}, graph"] = str(error).splitlines()[0]
    return runs, missing


class NotMeasured(Exception):
    """The reason why a variant has no numbers."""


class Compiler:
    """torch.compile of the gather form, for one size each, while its time lasts."""

    def __init__(self, seconds: float) -> None:
        self.left_s = seconds

    def compile(self, arguments: tuple[Any, ...]) -> Run:
        """A callable that is compiled already. Raises NotMeasured when the time is over or torch cannot compile."""
        if self.left_s <= 0:
            raise NotMeasured("the time for compiling was over")
        start = time.perf_counter()
        torch.compiler.reset()  # else the eighth size would be its last
        compiled = torch.compile(rdsa, dynamic=False, fullgraph=True)
        try:
            compiled(*arguments)
        except (RuntimeError, ImportError, OSError) as error:  # no Triton, no C compiler
            raise NotMeasured(f"torch.compile: {type(error).__name__}: {error}") from error
        finally:
            self.left_s -= time.perf_counter() - start
        return lambda: compiled(*arguments)


def captured(run: Run) -> Run:
    """The replay of a CUDA graph of one call."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


class Stopwatch:
    """Samples in microseconds."""

    def __init__(self) -> None:
        l2_bytes = torch.cuda.get_device_properties().L2_cache_size
        self.overwritten = torch.empty(max(4 * l2_bytes, 1 << 26), dtype=torch.int8, device="cuda")
        self.start, self.stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def rounds(self, runs: Mapping[str, Run]) -> dict[str, dict[str, list[float]]]:
        """{variant: {mode: samples}}; each round takes one sample of each."""
        plans = {name: self._plan(run) for name, run in runs.items()}
        samples: dict[str, dict[str, list[float]]] = {name: {mode: [] for mode in MODES} for name in runs}
        end = time.perf_counter() + ROUNDS_S
        for count in range(MOST_ROUNDS):
            if count >= LEAST_ROUNDS and time.perf_counter() > end:
                break
            for name, run in runs.items():
                calls, queue_us = plans[name]
                samples[name]["warm"].append(self._warm(run, calls, queue_us))
                samples[name]["cold"].append(self._cold(run, queue_us))
                samples[name]["call"].append(self._call(run))
        return samples

    def copy_bytes_per_us(self) -> float:
        """Bytes read and written in a microsecond by a large copy on the device."""
        source = torch.empty(1 << 30, dtype=torch.int8, device="cuda")
        target = torch.empty_like(source)
        samples = [self._warm(lambda: target.copy_(source), 5, 100.0) for _ in range(10)]
        return 2 * source.numel() / float(np.median(samples))

    def _plan(self, run: Run) -> tuple[int, float]:
        """Calls of a warm sample, and how long the host takes to queue one."""
        queue_us = []
        for _ in range(5):
            torch.cuda.synchronize()
            start = time.perf_counter()
            run()
            queue_us.append(1e6 * (time.perf_counter() - start))
        once_us = self._warm(run, 1, max(queue_us))
        return max(1, min(MOST_CALLS, round(SAMPLE_US / once_us))), max(queue_us)

    def _warm(self, run: Run, calls: int, queue_us: float) -> float:
        self._hold((calls + 1) * queue_us)
        return self._span(run, calls)

    def _cold(self, run: Run, queue_us: float) -> float:
        self._hold(queue_us)
        self.overwritten.zero_()
        return self._span(run, 1)

    def _call(self, run: Run) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        return 1e6 * (time.perf_counter() - start)

    def _span(self, run: Run, calls: int) -> float:
        self.start.record()
        for _ in range(calls):
            run()
        self.stop.record()
        self.stop.synchronize()
        return 1e3 * self.start.elapsed_time(self.stop) / calls

    @staticmethod
    def _hold(us: float) -> None:
        """Keep the stream busy for longer than the host needs, at up to 2 GHz."""
        torch.cuda._sleep(int(2000 * (1.5 * us + 50)))


def summary(samples: list[float]) -> dict[str, float]:
    p50, p90, p99 = (float(x) for x in np.percentile(samples, (50, 90, 99)))
    return {"p50": p50, "p90": p90, "p99": p99, "samples": len(samples)}


def machine() -> dict[str, str]:
    device = torch.cuda.get_device_properties()
    return dict(machine_facts()) | {
        "GPU": device.name,
        "compute capability": f"{device.major}.{device.minor}",
        "L2 bytes": str(device.L2_cache_size),
        "torch": torch.__version__,
        "CUDA of torch": str(torch.version.cuda),
    }


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
