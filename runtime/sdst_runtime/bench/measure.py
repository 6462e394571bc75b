"""Measuring sessions: every variant in turn, every sample kept, and a reason where nothing was measured.

Shapes: B videos (batch), T clips, Q queries a video, L tokens, R = B * Q rows of the head, K layers, V and X widths.
Times are in seconds here and in milliseconds on pages and in tables.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ..contracts import FeatureSpec
from ..errors import SdstError
from ..media.clips import VISION_BATCH
from ..sessions.base import PROJECTED, Session

STAGES = ("decode", "vision", "text", "projection", "head", "copy")
NOT_MEASURED = "not measured"
WARM_CALLS = 3  # memory is allocated in the first, a CUDA graph captured in the second, launched in the third

Sessions = Mapping[str, Session]  # "vision", "text", "projection", "head": what a variant has of them


@dataclass(frozen=True)
class Shape:
    """What one call handled: `batch` videos of `clips` clips, for each `queries` sentences of `tokens` tokens."""

    batch: int
    clips: int
    queries: int
    tokens: int

    def __str__(self) -> str:
        return f"B {self.batch} T {self.clips} Q {self.queries} L {self.tokens}"


@dataclass(frozen=True)
class Timing:
    """One stage of one variant: seconds of every call, or the reason why there are none."""

    variant: str
    stage: str
    shape: Shape | None  # None: the stage does not depend on it
    seconds: tuple[float, ...] = ()
    reason: str = ""

    def percentile_ms(self, percent: float) -> float | None:
        """Milliseconds below which `percent` of the calls lie; None where nothing was measured."""
        return 1e3 * float(np.percentile(self.seconds, percent)) if self.seconds else None


@dataclass(frozen=True)
class Throughput:
    """Sentences a second that `streams` threads got from one head session, or the reason why not."""

    variant: str
    streams: int
    shape: Shape
    queries_per_s: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Footprint:
    """What a variant needs: files in bytes, and memory of a process that opens it and runs each model once."""

    variant: str
    files: Mapping[str, int]  # file name -> bytes
    memory_bytes: int | None  # by which the process grew at its peak
    gpu_bytes: int | None  # held on the GPU after the runs
    reason: str = ""  # why a number is missing


@dataclass(frozen=True)
class Benchmark:
    """All that one run of `sdst bench` found."""

    machine: tuple[tuple[str, str], ...]
    clocks: tuple[tuple[str, str], ...]  # before and after
    sha256: Mapping[str, str]  # of every file that was measured, by its path
    variants: Mapping[str, str]  # name -> what it is; for one that did not run, why
    timings: tuple[Timing, ...]
    throughputs: tuple[Throughput, ...]
    footprints: tuple[Footprint, ...]
    warnings: tuple[str, ...] = ()  # what the numbers must not be read without


def interleave(
    variants: Mapping[str, Callable[[], object]], *, seconds: float, warm_up_s: float = 2.0, least: int = 5,
    settled: bool = False,
) -> dict[str, list[float]]:  # fmt: skip
    """Seconds of every call, by variant, as `measure` has them; raises the error of the first variant that failed."""
    samples, errors = measure(variants, seconds=seconds, warm_up_s=warm_up_s, least=least, settled=settled)
    for error in errors.values():
        raise error
    return samples


def measure(
    variants: Mapping[str, Callable[[], object]], *, seconds: float, warm_up_s: float = 2.0, least: int = 5,
    settled: bool = False,
) -> tuple[dict[str, list[float]], dict[str, SdstError]]:  # fmt: skip
    """Seconds of every call, by variant. Rounds go on for `seconds` and `least` rounds; no sample is dropped.

    Every round runs each variant once, so that a slow moment of the machine hits all of them; `settled` ones run once
    more before they are timed, after which no thread of another variant spins on. A variant that raises an SdstError
    has no samples but that error; the others go on. WARM_CALLS rounds and `warm_up_s` seconds come first.
    """
    running, errors = dict(variants), {}
    stop, rounds = time.perf_counter() + warm_up_s, 0
    while running and (rounds < WARM_CALLS or time.perf_counter() < stop):
        _round(running, errors, settled)
        rounds += 1
    samples: dict[str, list[float]] = {name: [] for name in running}
    stop, rounds = time.perf_counter() + seconds, 0
    while running and (rounds < least or time.perf_counter() < stop):
        for name, took in _round(running, errors, settled).items():
            samples[name].append(took)
        rounds += 1
    return {name: samples[name] for name in running}, errors


def _round(
    running: dict[str, Callable[[], object]], errors: dict[str, SdstError], settled: bool
) -> dict[str, float]:  # fmt: skip
    """Seconds of one call of each; a variant that fails goes from `running` to `errors`."""
    took = {}
    for name, run in list(running.items()):
        try:
            if settled:
                run()
            start = time.perf_counter()
            run()
        except SdstError as error:
            errors[name] = error
            del running[name]
        else:
            took[name] = time.perf_counter() - start
    return took


def make_inputs(spec: FeatureSpec, shape: Shape, vocabulary: int, seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """Random inputs by stage, all clips and tokens valid. Those of the head lack `projected`: see `head_inputs`.

    vision: clips N F S S 3 uint8; text: token_ids R L int64, token_mask R L; projection: video B T K V float32,
    video_mask B T; head: video_mask R T, text R K L X float32, text_mask R L.
    """
    rng = np.random.default_rng(seed)
    B, T, L, R, K = shape.batch, shape.clips, shape.tokens, shape.batch * shape.queries, spec.layers
    size = (VISION_BATCH, spec.frames_per_clip, spec.image_size, spec.image_size, 3)
    return {
        "vision": {"clips": rng.integers(0, 256, size, dtype=np.uint8)},
        "text": {"token_ids": rng.integers(0, vocabulary, (R, L)), "token_mask": np.ones((R, L), bool)},
        "projection": {
            "video": rng.standard_normal((B, T, K, spec.video_width), dtype=np.float32),
            "video_mask": np.ones((B, T), bool),
        },
        "head": {
            "video_mask": np.ones((R, T), bool),
            "text": rng.standard_normal((R, K, L, spec.text_width), dtype=np.float32),
            "text_mask": np.ones((R, L), bool),
        },
    }


def head_inputs(
    sessions: Sessions, inputs: Mapping[str, Mapping[str, np.ndarray]], queries: int
) -> dict[str, np.ndarray]:
    """Inputs of a variant's head: its own projection of the videos, each row repeated for its sentences."""
    projected = sessions["projection"].run(inputs["projection"])[PROJECTED]
    return {PROJECTED: np.repeat(projected, queries, axis=0), **inputs["head"]}


def time_stage(
    stage: str,
    variants: Mapping[str, Sessions],
    missing: Mapping[str, str],
    inputs: Mapping[str, Mapping[str, np.ndarray]],
    shape: Shape | None,
    queries: int,
    seconds: float,
    warm_up_s: float,
) -> list[Timing]:
    """One Timing a variant, interleaved.

    A variant without the stage gets its reason from `missing`, by variant; one that fails, as an engine does on a shape
    outside its profiles, its error.
    """
    calls, reasons = {}, {}
    for name, sessions in variants.items():
        if stage not in sessions:
            reasons[name] = missing[name]
            continue
        try:
            given = head_inputs(sessions, inputs, queries) if stage == "head" else inputs[stage]
        except SdstError as error:
            reasons[name] = str(error)
            continue
        calls[name] = lambda session=sessions[stage], given=given: session.run(given)
    samples, errors = measure(calls, seconds=seconds, warm_up_s=warm_up_s)
    reasons |= {name: str(error) for name, error in errors.items()}
    return [Timing(name, stage, shape, tuple(samples.get(name, ())), reasons.get(name, "")) for name in variants]


def throughput(
    variants: Mapping[str, Sessions],
    inputs: Mapping[str, Mapping[str, np.ndarray]],
    shape: Shape,
    streams: int,
    seconds: float,
) -> list[Throughput]:
    """Sentences a second of `streams` threads that share a variant's head. Variants take turns, four slices each.

    Memory is allocated and graphs are captured before the clock starts; a variant that fails gets its error as reason.
    """
    calls, spent = dict.fromkeys(variants, 0), dict.fromkeys(variants, 0.0)
    given: dict[str, dict[str, np.ndarray]] = {}
    reasons: dict[str, str] = {}

    def warm(name: str) -> None:
        given[name] = _warmed_inputs(variants[name], inputs, shape, streams)

    def count(name: str) -> None:
        done, took = _calls_in(variants[name]["head"], given[name], streams, seconds / 4)
        calls[name], spent[name] = calls[name] + done, spent[name] + took

    for step in (warm, count, count, count, count):
        for name in variants:
            if name not in reasons:
                try:
                    step(name)
                except SdstError as error:
                    reasons[name] = str(error)
    rows = shape.batch * shape.queries
    return [
        Throughput(name, streams, shape, reason=reasons[name])
        if name in reasons
        else Throughput(name, streams, shape, rows * calls[name] / spent[name])
        for name in variants
    ]


def _warmed_inputs(
    sessions: Sessions, inputs: Mapping[str, Mapping[str, np.ndarray]], shape: Shape, streams: int
) -> dict[str, np.ndarray]:
    """The head's inputs, after calls that warmed what each stream will use."""
    head, given = sessions["head"], head_inputs(sessions, inputs, shape.queries)
    warm_up: Callable[[], None] | None = getattr(head, "warm_up", None)
    if warm_up is not None:
        warm_up()
    _calls_in(head, given, streams, seconds=0, least=WARM_CALLS)
    return given


def _calls_in(
    session: Session, inputs: Mapping[str, np.ndarray], streams: int, seconds: float, least: int = 1
) -> tuple[int, float]:
    """Calls that `streams` threads finished, at least `least` each, and the seconds until the last of them ended."""
    together = threading.Barrier(streams)  # else a thread that is done early takes the next one's work
    start = time.perf_counter()
    stop = start + seconds

    def work(_: int) -> int:
        together.wait()
        count = 0
        while count < least or time.perf_counter() < stop:
            session.run(inputs)
            count += 1
        return count

    with ThreadPoolExecutor(streams) as pool:
        counts = list(pool.map(work, range(streams)))
    return sum(counts), time.perf_counter() - start


def as_json(benchmark: Benchmark) -> dict[str, object]:
    """The documented JSON of `sdst bench`: percentiles beside every sample, null and a reason where there is none."""
    return {
        "format": 1,
        "machine": dict(benchmark.machine),
        "clocks": dict(benchmark.clocks),
        "warnings": list(benchmark.warnings),
        "sha256": dict(benchmark.sha256),
        "variants": dict(benchmark.variants),
        "timings": [_timing_json(timing) for timing in benchmark.timings],
        "throughput": [
            {"variant": t.variant, "streams": t.streams, **_shape_json(t.shape), "queries_per_s": t.queries_per_s}
            | _why(t.reason)
            for t in benchmark.throughputs
        ],
        "footprints": [
            {"variant": f.variant, "files": dict(f.files), "memory_bytes": f.memory_bytes, "gpu_bytes": f.gpu_bytes}
            | _why(f.reason)
            for f in benchmark.footprints
        ],
    }


def _timing_json(timing: Timing) -> dict[str, object]:
    percentiles = {f"p{p}_ms": timing.percentile_ms(p) for p in (50, 90, 99)}
    return {
        "variant": timing.variant,
        "stage": timing.stage,
        **_shape_json(timing.shape),
        **percentiles,
        "seconds": list(timing.seconds),
        **_why(timing.reason),
    }


def _shape_json(shape: Shape | None) -> dict[str, object]:
    if shape is None:
        return {}
    return {"batch": shape.batch, "clips": shape.clips, "queries": shape.queries, "tokens": shape.tokens}


def _why(reason: str) -> dict[str, object]:
    return {NOT_MEASURED: reason} if reason else {}


def shapes_of(
    batches: Sequence[int], clips: Sequence[int], queries: Sequence[int], tokens: int
) -> tuple[Shape, ...]:  # fmt: skip
    """Every combination, queries fastest."""
    return tuple(Shape(b, t, q, tokens) for b in batches for t in clips for q in queries)
