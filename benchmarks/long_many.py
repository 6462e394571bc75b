"""Long and many: python benchmarks/long_many.py BUNDLE --annotations FILE --out FOLDER.

How time and memory grow with the length of a video and with the number of questions:

- seconds of projecting and asking 1, 2, 5 and 10 hours of features in windows, and the most memory that a process held
  which does nothing else, less what it held before: each length in processes of its own, in turn, all kept;
- milliseconds a question of distinct sentences about one video, asked together in batches of several sizes and one by
  one, in turn.

A line through the medians of the lengths says how linear they are. Features are noise; BUNDLE is one that `sdst export`
or `sdst demo` wrote, its vision model is not run. Beside the elapsed time stands that of the processor, which other
processes of a busy machine change little.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import tyro
from rich.console import Console

from sdst_runtime import Grounder, VideoFeatures
from sdst_runtime.files import read_jsonl, write_bytes, write_json
from sdst_runtime.machine import load, load_warning, machine_facts, memory_bytes, peak_memory_bytes

say = Console(highlight=False, soft_wrap=True).print


def main(
    bundle: tyro.conf.Positional[Path],
    *,
    annotations: Path,
    out: Path,
    hours: tuple[int, ...] = (1, 2, 5, 10),
    batches: tuple[int, ...] = (1, 8, 32, 128, 1000),
    queries: int = 1000,
    clips: int = 75,
    rounds: int = 3,
    threads: int = 2,
) -> None:
    """Measure, print, and draw long_many.png and long_many.json.

    Args:
        bundle: The bundle to measure.
        annotations: A JSONL file with `query` in each row: the sentences.
        out: Folder of the picture and the numbers.
        hours: Lengths of the long videos.
        batches: How many sentences are asked in one call.
        queries: Distinct sentences about one video.
        clips: Of that video.
        rounds: Of all lengths, and of all batch sizes.
        threads: Of ONNX Runtime.
    """
    sentences = list(dict.fromkeys(row["query"] for row in read_jsonl(annotations)))[:queries]
    if len(sentences) < queries:
        raise SystemExit(f"{annotations}: expected {queries} distinct sentences, got {len(sentences)}")
    say(", ".join(f"{name} {value}" for name, value in machine_facts()), load(), load_warning())
    long = [measure_long(bundle, length, sentences[0], threads) for _ in range(rounds) for length in hours]
    for length in hours:
        say_long(length, [row for row in long if row["hours"] == length])
    for what, unit, scale in (("processor_s", "s of the processor", 1), ("grown_bytes", "MiB", 2**20)):
        say(line(hours, [median(long, n, what) / scale for n in hours], unit))
    many = measure_many(bundle, sentences, clips, batches, rounds, threads)
    for size, samples in many.items():
        say_many(size, queries, samples)
    write_bytes(out / "long_many.png", draw(hours, long, queries, many))
    numbers = {"machine": dict(machine_facts()), "threads": threads, "warning": load_warning(), "long": long}
    write_json(out / "long_many.json", numbers | {"queries": queries, "clips": clips, "many": many})


# ---------------------------------------------------------------- long


def measure_long(bundle: Path, hours: int, query: str, threads: int) -> dict[str, float]:
    """Seconds and bytes of a process of its own."""
    command = [sys.executable, __file__, "alone", str(bundle), str(hours), query, str(threads)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def alone(bundle: str, hours: str, query: str, threads: str) -> None:
    """Project and ask one long video; print what it took as JSON. Models are opened and run once before."""
    grounder = Grounder.load(bundle, int(threads))
    grounder.ground(noise(grounder, grounder.window_clips * 2), query)
    video = noise(grounder, round(int(hours) * 3600 / grounder.spec.clip_s))
    before, elapsed, computed = memory_bytes() or 0, time.perf_counter(), time.process_time()
    encoded = grounder.project(video)
    projected = time.process_time()
    answer = grounder.ground(encoded, query)
    took = {"elapsed_s": time.perf_counter() - elapsed, "processor_s": time.process_time() - computed}
    took |= {"projection_s": projected - computed, "grown_bytes": (peak_memory_bytes() or 0) - before}
    took |= {"hours": int(hours), "windows": len(encoded.windows), "moments": len(answer.moments)}
    sys.stdout.write(json.dumps(took | {"features_bytes": video.features.nbytes}))


def noise(grounder: Grounder, clips: int) -> VideoFeatures:
    spec = grounder.spec
    features = np.random.default_rng(0).standard_normal((clips, spec.layers, spec.video_width), np.float32)
    return VideoFeatures(features, clips * spec.clip_s, spec)


def median(rows: Sequence[dict[str, float]], hours: int, what: str) -> float:
    return float(np.median([row[what] for row in rows if row["hours"] == hours]))


def line(hours: Sequence[int], values: Sequence[float], unit: str) -> str:
    """The line through the values, and how far they are from it."""
    slope, start = np.polyfit(hours, values, 1)
    furthest = float(np.abs(np.polyval((slope, start), hours) - values).max()) / max(values)
    return f"{start:.2f} {unit} + {slope:.2f} an hour; the furthest from this line by {furthest:.1%} of the largest"


def say_long(hours: int, rows: Sequence[dict[str, float]]) -> None:
    elapsed, computed = ([row[what] for row in rows] for what in ("elapsed_s", "processor_s"))
    grown, features = (median(rows, hours, what) / 2**20 for what in ("grown_bytes", "features_bytes"))
    say(
        f"{hours:>3} h, {rows[0]['windows']} windows, {rows[0]['moments']} moments: {percentiles(elapsed, 1)} s "
        f"elapsed, {percentiles(computed, 1)} s of the processor; memory grew by {grown:.0f} MiB beside features of "
        f"{features:.0f}"
    )


def percentiles(seconds: Sequence[float], scale: float) -> str:
    """Median, 90 and 99 percent."""
    return " / ".join(f"{scale * value:.3f}" for value in np.percentile(seconds, (50, 90, 99)))


# ---------------------------------------------------------------- many


def measure_many(
    bundle: Path, sentences: Sequence[str], clips: int, sizes: Sequence[int], rounds: int, threads: int
) -> dict[int, list[tuple[float, float]]]:
    """(elapsed, processor) seconds of all sentences, by how many are asked in a call. One round is not counted."""
    grounder = Grounder(bundle, threads, vision=False)
    video = grounder.project(noise(grounder, clips))
    found: dict[int, list[tuple[float, float]]] = {size: [] for size in sizes}
    for number in range(rounds + 1):
        for size in sizes:
            elapsed, computed = time.perf_counter(), time.process_time()
            for start in range(0, len(sentences), size):
                grounder.ground_batch(video, sentences[start : start + size])
            if number > 0:
                found[size].append((time.perf_counter() - elapsed, time.process_time() - computed))
    return found


def say_many(size: int, queries: int, samples: Sequence[tuple[float, float]]) -> None:
    elapsed, computed = ([sample[i] for sample in samples] for i in range(2))
    say(
        f"{queries} sentences, {size} in a call: {percentiles(elapsed, 1e3 / queries)} ms a sentence elapsed, "
        f"{percentiles(computed, 1e3 / queries)} ms of the processor"
    )


# ---------------------------------------------------------------- the picture


def draw(
    hours: Sequence[int], long: Sequence[dict[str, float]], queries: int, many: dict[int, list[tuple[float, float]]]
) -> bytes:
    """Time and memory against hours, time a sentence against the batch, as a PNG file."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for ax, what, unit, scale in zip(
        axes, ("processor_s", "grown_bytes"), ("seconds of the processor", "MiB"), (1, 2**20)
    ):
        ax.plot([row["hours"] for row in long], [row[what] / scale for row in long], "o", alpha=0.6, label="measured")
        slope, start = np.polyfit(hours, [median(long, length, what) / scale for length in hours], 1)
        ax.plot([0, hours[-1]], [start, start + slope * hours[-1]], color="grey", label=f"{slope:.2f} an hour")
        ax.set(xlabel="hours of video", ylabel=unit, xlim=(0, None), ylim=(0, None))
        ax.legend()
    axes[0].set_title("Projecting and asking once")
    axes[1].set_title("Memory beside the features")
    sizes = list(many)
    for i, name in enumerate(("elapsed", "of the processor")):
        axes[2].plot(sizes, [1e3 / queries * np.median([x[i] for x in many[n]]) for n in sizes], "o-", label=name)
    axes[2].set(xlabel="sentences in a call", ylabel="ms a sentence", xscale="log", ylim=(0, None))
    axes[2].set_title(f"{queries} sentences about one video")
    axes[2].legend()
    for ax in axes:
        ax.grid(alpha=0.3)
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=120)
    plt.close(figure)
    return target.getvalue()


if __name__ == "__main__":
    if sys.argv[1:2] == ["alone"]:
        alone(*sys.argv[2:])
    else:
        tyro.cli(main)
