"""`sdst bench`: how fast bundles are, stage by stage, beside each other and beside torch."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import tyro

from sdst_runtime.bench.measure import (
    NOT_MEASURED,
    STAGES,
    Benchmark,
    Sessions,
    Shape,
    Throughput,
    Timing,
    as_json,
    interleave,
    make_inputs,
    shapes_of,
    throughput,
    time_stage,
)
from sdst_runtime.bench.page import write_page
from sdst_runtime.errors import InputError, SdstError
from sdst_runtime.files import sha256_file, write_json
from sdst_runtime.grounding.bundle import Bundle
from sdst_runtime.machine import clocks, gpus, load, load_warning, machine_facts
from sdst_runtime.media.clips import ClipStream

from .bench_variants import HEAD_ONLY, Candidate, candidates, footprint, open_candidate, parse_kinds, vocabulary_of
from .consoles import make_console
from .progress import counted

NO_VIDEO = "give --video FILE"
NO_COPY_APART = "on a CPU nothing is copied; on a GPU the copies are inside the times of the other stages"
MEDIA = "PyAV"  # the variant of the stage decode


def bench(
    bundles: tyro.conf.Positional[tuple[Path, ...]],
    *,
    against: str = "",
    checkpoint: Path | None = None,
    video: Path | None = None,
    batch: tuple[int, ...] = (1,),
    clips: tuple[int, ...] = (75,),
    queries: tuple[int, ...] = (1, 10),
    tokens: int = 20,
    streams: tuple[int, ...] = (1, 2),
    seconds: float = 2.0,
    warm_up: float = 1.0,
    threads: int | None = None,
    out: Path | None = None,
) -> None:
    """Time the stages of bundles on random inputs and print medians and tails; JSON and a page with --out.

    Variants take turns, so that a slow moment of the machine hits all of them, and no sample is dropped.

    Args:
        bundles: Directories that `sdst export` or `sdst build` wrote.
        against: What to time beside them, by commas: torch, compile, onnxrt, trt, trt-no-plugin.
        checkpoint: The weights for torch and compile.
        video: A video file for the stage decode.
        batch: Videos at once.
        clips: Clips a video.
        queries: Sentences a video.
        tokens: Tokens a sentence.
        streams: Threads that share one head, for the sentences a second.
        seconds: How long to measure each stage of each shape.
        warm_up: How long to run it before.
        threads: Threads for each model; default: all cores.
        out: Folder for bench.json and bench.html.
    """
    shapes, opened = _checked(bundles, batch, clips, queries, tokens, streams, seconds, warm_up)
    named = candidates(opened, parse_kinds(against), checkpoint, threads, max(streams))
    before, warning = _state(), load_warning()
    with ExitStack() as stack:
        running, reasons = _open(named, stack)
        timings = [*_decode(video, opened[0], seconds, warm_up)]
        timings += _timings(opened[0], running, reasons, shapes, seconds, warm_up)
        throughputs = _throughputs(opened[0], running, reasons, shapes[0], streams, seconds)
    with counted("memory") as on_done:
        footprints = []
        for one in named:
            footprints.append(footprint(one, opened[0], shapes[-1]))
            on_done(len(footprints), len(named))
    result = Benchmark(
        machine=_machine(threads),
        clocks=(("before", before), ("after", _state())),
        sha256=_digests(opened, checkpoint),
        variants={
            one.name: f"{NOT_MEASURED}: {reasons[one.name]}" if one.name in reasons else one.what for one in named
        },
        timings=tuple(timings),
        throughputs=tuple(throughputs),
        footprints=tuple(footprints),
        warnings=(warning,) if warning else (),
    )
    _print(result)
    if out is not None:
        write_json(out / "bench.json", as_json(result))
        write_page(out / "bench.html", result)
        print(out / "bench.html")  # noqa: T201


def _checked(
    bundles: tuple[Path, ...], batch: tuple[int, ...], clips: tuple[int, ...], queries: tuple[int, ...], tokens: int,
    streams: tuple[int, ...], seconds: float, warm_up: float,
) -> tuple[tuple[Shape, ...], list[Bundle]]:  # fmt: skip
    """All shapes and the opened bundles. Raises InputError for an option that cannot be, before anything runs."""
    if not bundles:
        raise InputError("no bundle given: expected  sdst bench BUNDLE ...")
    counts = {"batch": batch, "clips": clips, "queries": queries, "streams": streams, "tokens": (tokens,)}
    for name, values in counts.items():
        if not values or min(values) < 1:
            raise InputError(f"--{name}: expected numbers of at least 1, got {' '.join(map(str, values)) or 'none'}")
    if not (seconds > 0 and warm_up >= 0):
        raise InputError(f"--seconds, --warm-up: expected above 0 and at least 0, got {seconds:g} and {warm_up:g}")
    opened = [Bundle.open(path) for path in bundles]
    first = opened[0].manifest.spec
    for bundle in opened[1:]:
        first.require(
            bundle.manifest.spec, have=opened[0].directory, need=bundle.directory, exact=True,
            mend="bundles that are compared take the same features",
        )  # fmt: skip
    if tokens > first.max_tokens:
        raise InputError(f"--tokens: expected at most {first.max_tokens}, which the bundle takes, got {tokens}")
    return shapes_of(batch, clips, queries, tokens), opened


def _open(named: list[Candidate], stack: ExitStack) -> tuple[dict[str, Sessions], dict[str, str]]:
    """Sessions of the variants that can run here, and the reasons of the others. Raises when none can."""
    running: dict[str, Sessions] = {}
    reasons: dict[str, str] = {}
    for one in named:
        try:
            running[one.name] = open_candidate(one)
        except SdstError as error:
            reasons[one.name] = str(error)
            continue
        for session in running[one.name].values():
            stack.callback(session.close)
    if not running:
        raise InputError(f"no variant can run here: {'; '.join(f'{name}: {why}' for name, why in reasons.items())}")
    return running, reasons


def _decode(video: Path | None, bundle: Bundle, seconds: float, warm_up: float) -> list[Timing]:
    if video is None:
        return [Timing(MEDIA, "decode", None, reason=NO_VIDEO)]
    spec = bundle.manifest.spec
    samples = interleave({MEDIA: lambda: list(ClipStream(video, spec))}, seconds=seconds, warm_up_s=warm_up)
    return [Timing(MEDIA, "decode", None, tuple(samples[MEDIA]))]


def _timings(
    bundle: Bundle, running: dict[str, Sessions], reasons: dict[str, str], shapes: tuple[Shape, ...], seconds: float,
    warm_up: float,
) -> list[Timing]:  # fmt: skip
    """Every stage but decode, of every variant; those that do not run here get their reasons."""
    vocabulary, timings = vocabulary_of(bundle), []
    plan = [("vision", None), *((stage, shape) for shape in shapes for stage in ("text", "projection", "head"))]
    missing = dict.fromkeys(running, HEAD_ONLY)
    with counted("timing") as on_done:
        for number, (stage, shape) in enumerate(plan, 1):
            inputs = make_inputs(bundle.manifest.spec, shape or shapes[0], vocabulary)
            queries = shape.queries if shape else 1
            timings += time_stage(stage, running, missing, inputs, shape, queries, seconds, warm_up)
            timings += [Timing(name, stage, shape, reason=why) for name, why in reasons.items()]
            on_done(number, len(plan))
    return timings + [
        Timing(name, "copy", None, reason=reasons.get(name, NO_COPY_APART)) for name in (*running, *reasons)
    ]


def _throughputs(
    bundle: Bundle, running: dict[str, Sessions], reasons: dict[str, str], shape: Shape, streams: tuple[int, ...],
    seconds: float,
) -> list[Throughput]:  # fmt: skip
    inputs, found = make_inputs(bundle.manifest.spec, shape, vocabulary_of(bundle)), []
    for count in streams:
        found += throughput(running, inputs, shape, count, seconds)
        found += [Throughput(name, count, shape, reason=why) for name, why in reasons.items()]
    return found


def _digests(bundles: list[Bundle], checkpoint: Path | None) -> dict[str, str]:
    found = {str(b.directory / name): digest for b in bundles for name, digest in b.manifest.files.items()}
    return found | ({str(checkpoint): sha256_file(checkpoint)} if checkpoint and checkpoint.is_file() else {})


def _state() -> str:
    """Clocks and load at this moment."""
    return f"{clocks() or NOT_MEASURED}, {load() or NOT_MEASURED}"


def _machine(threads: int | None) -> tuple[tuple[str, str], ...]:
    found = [f"{gpu.name}, compute capability {gpu.capability}, driver {gpu.driver}" for gpu in gpus()]
    torch = sys.modules.get("torch")
    return (
        *machine_facts(),
        ("threads a model", str(threads or "all cores")),
        ("GPU", "; ".join(found) or "none"),
        *((("torch", str(torch.__version__)),) if torch else ()),
    )


def _print(result: Benchmark) -> None:
    """The numbers, for a person."""

    console = make_console(width=max(make_console().width, 120))  # a table that is cut has no numbers
    console.print(_timing_table(result))
    console.print(_other_tables(result))
    for name, what in result.variants.items():
        console.print(f"{name}: {what}")
    for line in (*_failures(result), *result.warnings):
        console.print(line)
    facts = [*result.machine, *((f"clocks {when}", value) for when, value in result.clocks)]
    console.print(", ".join(f"{name} {value}" for name, value in facts))


def _failures(result: Benchmark) -> list[str]:
    """A line for each reason why some of a variant that ran was not measured, such as a shape that it does not take."""
    stages: dict[tuple[str, str], list[str]] = {}
    usual = {HEAD_ONLY, NO_COPY_APART, NO_VIDEO}
    rows = [(t.variant, t.reason, t.stage) for t in result.timings]
    rows += [(t.variant, t.reason, "sentences a second") for t in result.throughputs]
    for variant, reason, stage in rows:
        if reason and reason not in usual and not result.variants.get(variant, "").startswith(NOT_MEASURED):
            stages.setdefault((variant, reason), []).append(stage)
    return [
        f"{variant}: {NOT_MEASURED}: {', '.join(dict.fromkeys(names))}: {reason}"
        for (variant, reason), names in stages.items()
    ]


def _timing_table(result: Benchmark) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="milliseconds a call")
    for name in ("stage", "shape", "variant"):
        table.add_column(name)
    for name in ("p50", "p90", "p99", "calls"):
        table.add_column(name, justify="right")
    for stage in STAGES:
        for timing in (t for t in result.timings if t.stage == stage):
            cells = [stage, str(timing.shape or ""), timing.variant]
            numbers = [timing.percentile_ms(p) for p in (50, 90, 99)]
            known = [f"{ms:.2f}" for ms in numbers if ms is not None] + [str(len(timing.seconds))]
            table.add_row(*map(Text, [*cells, *(known if timing.seconds else (NOT_MEASURED, "", "", ""))]))
    return table


def _other_tables(result: Benchmark) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="sentences a second by streams; sizes")
    streams = list(dict.fromkeys(t.streams for t in result.throughputs))
    for name in ("variant", *(f"{n} streams" if n > 1 else "1 stream" for n in streams), "files MB", "memory MB"):
        table.add_column(name, justify="left" if name == "variant" else "right")
    for foot in result.footprints:
        rates = [t.queries_per_s for t in result.throughputs if t.variant == foot.variant]
        sizes = [sum(foot.files.values()) or None, foot.memory_bytes]
        cells = [f"{rate:.1f}" if rate else NOT_MEASURED for rate in rates]
        cells += [f"{size / 1e6:.1f}" if size else NOT_MEASURED for size in sizes]
        table.add_row(*map(Text, [foot.variant, *cells]))
    return table
