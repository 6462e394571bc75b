"""Streams of up to an hour: python benchmarks/long_video.py BUNDLE --out FOLDER [--features FOLDER].

Seconds of projecting a stream and grounding one sentence in it, against its length: in windows of 1200 and of 300
clips, and in one piece, which costs the square. All lengths and sizes run in turn in every round. A line is fitted
through the medians of the windowed streams; windows come whole, so the cost is a staircase around it. Then every moment
that a window finds alone and that crosses no border is looked for in the answer about the whole stream.

BUNDLE is one that `sdst export` or `sdst demo` wrote; its vision model is not run.
"""

from __future__ import annotations

import io
import resource
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import tyro
from rich.console import Console
from timing import interleave

from sdst_runtime import FeatureSpec, Grounder, Grounding, VideoFeatures
from sdst_runtime.data.features import read_video_features
from sdst_runtime.files import write_bytes, write_json
from sdst_runtime.grounding.windows import split
from sdst_runtime.machine import machine_facts

HOUR = 3600  # clips of 1 s, the most of any data set here
SIZES = (1200, 300)  # clips a window
LENGTHS = (150, 300, 600, 900, 1200, 1500, 1800, 2100, 2400, 2700, 3000, 3300, HOUR)
WHOLE = (150, 300, 600, 900, 1200, 1800, 2400)  # lengths in one piece; the attention of 3600 takes gigabytes

say = Console(highlight=False, soft_wrap=True).print


def main(
    bundle: tyro.conf.Positional[Path],
    *,
    out: Path,
    query: str = "a red circle moves to the left",
    features: Path | None = None,
    seconds: float = 60.0,
    threads: int = 2,
) -> None:
    """Measure, print, and draw long_video.png and long_video.json.

    Args:
        bundle: The bundle to measure.
        out: Folder of the picture and the numbers.
        query: The sentence.
        features: Folder of feature files to string together, such as demo-out/features/video; default: noise.
        seconds: Of timing, after a warm-up.
        threads: Of ONNX Runtime.
    """
    grounders = {size: Grounder.load(bundle, threads, window_clips=size) for size in SIZES}
    stream = make_stream(grounders[SIZES[0]].spec, features)
    samples = interleave(variants(grounders, stream, query), seconds=seconds, least=3)
    medians = {name: float(np.median(seconds)) for name, seconds in samples.items()}
    for name, median_s in medians.items():
        say(f"{name:>28}: {median_s:8.3f} s, {len(samples[name])} calls")
    fits = {size: fit(size, medians) for size in SIZES}
    for size, (slope_s, start_s, residual_s) in fits.items():
        say(
            f"windows of {size}: {1e3 * slope_s:.3f} ms a clip + {start_s:.3f} s; residual {residual_s:.3f} s RMS, "
            f"{100 * residual_s / medians[label(size, HOUR)]:.1f} % of the longest; "
            "{:.3f} to {:.3f} s a window".format(*a_window(size, medians))
        )
    say(f"peak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    for size, grounder in grounders.items():
        compare(grounder, size, stream, query)
    write_bytes(out / "long_video.png", draw(medians, fits))
    numbers = {"machine": dict(machine_facts()), "threads": threads, "bundle": str(bundle), "fits": fits}
    write_json(out / "long_video.json", {**numbers, "seconds": samples})


def make_stream(spec: FeatureSpec, folder: Path | None) -> VideoFeatures:
    """An hour of clips: noise, or the videos of a folder again and again."""
    if folder is None:
        noise = np.random.default_rng(0).standard_normal((HOUR, spec.layers, spec.video_width), np.float32)
        return VideoFeatures(noise, HOUR * spec.clip_s, spec)
    parts, left = [], HOUR
    for path in cycle(sorted(folder.glob("val_*.safetensors"))):
        parts.append(read_video_features(path, spec).features[:left].astype(np.float32))
        left -= len(parts[-1])
        if left == 0:
            return VideoFeatures(np.concatenate(parts), HOUR * spec.clip_s, spec)
    raise SystemExit(f"{folder}: no val_*.safetensors in it")


def beginning(stream: VideoFeatures, clips: int, start: int = 0) -> VideoFeatures:
    return VideoFeatures(stream.features[start : start + clips], clips * stream.spec.clip_s, stream.spec)


def label(size: int | None, length: int) -> str:
    return f"{length} in one piece" if size is None else f"{length} in windows of {size}"


def variants(grounders: dict[int, Grounder], stream: VideoFeatures, query: str) -> dict[str, Callable[[], object]]:
    """One call a length and way of cutting."""
    found: dict[str, Callable[[], object]] = {}
    for size, grounder in grounders.items():
        for length in LENGTHS:
            found[label(size, length)] = partial(grounder.ground, beginning(stream, length), query)
    for length in WHOLE:
        found[label(None, length)] = partial(in_one_piece, grounders[SIZES[0]], beginning(stream, length), query)
    return found


def in_one_piece(grounder: Grounder, video: VideoFeatures, query: str) -> dict[str, np.ndarray]:
    """The head's outputs about a video of any length."""
    ids, text_mask = grounder.tokenizer.encode_batch([query], grounder.spec.max_tokens)
    text = grounder.text.run({"token_ids": ids, "token_mask": text_mask})["features"]
    mask = np.ones((1, len(video.features)), bool)
    return grounder.grounding_model.run(
        {"video": video.features[None], "video_mask": mask, "text": text, "text_mask": text_mask}
    )


def fit(size: int, medians: dict[str, float]) -> tuple[float, float, float]:
    """Seconds a clip, seconds at length 0 and root mean square residual of the streams longer than a window."""
    lengths = np.array([length for length in LENGTHS if length > size])
    seconds = np.array([medians[label(size, int(length))] for length in lengths])
    slope_s, start_s = np.polyfit(lengths, seconds, 1)
    return float(slope_s), float(start_s), float(np.sqrt(np.mean((seconds - slope_s * lengths - start_s) ** 2)))


def a_window(size: int, medians: dict[str, float]) -> tuple[float, float]:
    """The least and the most seconds a window of the streams longer than one: the staircase taken out."""
    seconds = [medians[label(size, length)] / len(split(length, size)) for length in LENGTHS if length > size]
    return min(seconds), max(seconds)


def compare(grounder: Grounder, size: int, stream: VideoFeatures, query: str) -> None:
    """Say how the whole stream's answer agrees with those of its windows, where no border is crossed."""
    whole, windows, distances, saliency = grounder.ground(stream, query), split(len(stream.features), size), [], 0.0
    found = rows(whole, 0.0)
    for window in windows:
        offset_s = window.start * stream.spec.clip_s
        alone = grounder.ground(beginning(stream, window.clips, window.start), query)
        own = np.ones(window.clips, bool)
        for other in windows:
            if other is not window:
                own[max(0, other.start - window.start) : max(0, other.stop - window.start)] = False
        saliency = max(saliency, float(np.abs(whole.saliency[window.start : window.stop] - alone.saliency)[own].max()))
        first_s, last_s = ((window.start + np.flatnonzero(own)[[0, -1]] + (0, 1)) * stream.spec.clip_s).tolist()
        for row in rows(alone, offset_s):
            if first_s <= row[0] and row[1] <= last_s:
                distances.append(float(np.abs(found - row).max(axis=1).min()))
    say(
        f"windows of {size}, {len(stream.features)} clips: {len(windows)} windows, {len(found)} moments; of "
        f"{len(distances)} moments of single windows that cross no border {sum(d < 1e-3 for d in distances)} are among "
        f"them, the furthest {max(distances):.1e} away (s or score); saliency outside the overlaps differs by at most "
        f"{saliency:.1e}"
    )


def rows(answer: Grounding, offset_s: float) -> np.ndarray:
    """Start, end and score of each moment, `offset_s` later."""
    return np.array([(m.start_s + offset_s, m.end_s + offset_s, m.score) for m in answer.moments])


def draw(medians: dict[str, float], fits: dict[int, tuple[float, float, float]]) -> bytes:
    """Seconds against length as a PNG file."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    whole_s = [medians[label(None, length)] for length in WHOLE]
    axes.plot(WHOLE, whole_s, "x--", color="grey", label="in one piece")
    for size, colour in zip(SIZES, ("tab:blue", "tab:orange")):
        slope_s, start_s, _ = fits[size]
        axes.plot(LENGTHS, [medians[label(size, n)] for n in LENGTHS], "o", color=colour, label=f"windows of {size}")
        line = np.array([size, HOUR])
        axes.plot(line, slope_s * line + start_s, color=colour, label=f"{1e3 * slope_s:.2f} ms a clip")
    axes.set(xlabel="clips", ylabel="seconds, median: projection, text and head", ylim=(0, None), xlim=(0, None))
    axes.set_title("One sentence in a long stream of features")
    axes.legend()
    axes.grid(alpha=0.3)
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=120)
    plt.close(figure)
    return target.getvalue()


if __name__ == "__main__":
    tyro.cli(main)
