"""The head on a CPU against the number of clips and of queries: a picture and its table.

    python benchmarks/head_curves.py --out DIR

Torch eager, first query, next query (head.py) and the products of each alone (floor.py), with random weights of the
paper's sizes, interleaved at each size. It writes head_curves.json and head_curves.svg into DIR and prints the table in
Markdown: p50 (p90, p99) in ms, and the ratios to the products.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import tyro
from floor import products_alone
from head import Call, calls, head_inputs, open_head, random_checkpoint, random_inputs, write_head
from timing import interleave, say_machine

from sdst_runtime.files import write_json
from sdst_runtime.sessions.base import GroundingModel, Session
from sdst_train.model.torch_session import TorchSession

EAGER, FIRST, NEXT = "torch eager", "first query", "next query"
FIRST_PRODUCTS, NEXT_PRODUCTS = "its products", "next query's products"
FLOORS = {FIRST: FIRST_PRODUCTS, NEXT: NEXT_PRODUCTS}
Samples = Mapping[str, list[float]]  # seconds by variant


def main(
    out: Path,
    clips: tuple[int, ...] = (75, 150, 300, 600, 1200),
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32),
    tokens: int = 20,
    threads: int = 2,
    seconds: float = 10.0,
) -> None:
    """Measure both curves.

    Args:
        out: A folder.
        clips: At one query.
        batches: Queries a call, at the first of `clips`.
        tokens: Of each query.
        threads: Of torch and of ONNX Runtime.
        seconds: Of timing at each size, after a warm-up.
    """
    torch.set_num_threads(threads)
    sizes = [*((1, T) for T in clips), *((B, clips[0]) for B in batches if B != 1)]
    trained = random_checkpoint()
    measured: dict[tuple[int, int], Samples] = {}
    print("| B | T | torch eager | first query | its products | ratio | next query | its products | ratio |")  # noqa: T201
    print("|---|---|---|---|---|---|---|---|---|")  # noqa: T201
    with TemporaryDirectory() as place:
        folder = Path(place) / "head"
        write_head(trained, "fp32", folder)
        model, eager = open_head(folder, threads), TorchSession(trained.model)
        for batch, T in sizes:
            variants = variants_of(model, eager, folder, random_inputs(trained.spec, batch, T, tokens), threads)
            measured[batch, T] = interleave(variants, seconds=seconds, settled=True)
            print(row(batch, T, measured[batch, T]), flush=True)  # noqa: T201
    machine = say_machine({"torch": torch.__version__})
    out.mkdir(parents=True, exist_ok=True)
    rows = [{"batch": B, "clips": T, "seconds": dict(samples)} for (B, T), samples in measured.items()]
    write_json(out / "head_curves.json", {"machine": machine, "threads": threads, "sizes": rows})
    draw(measured, clips, batches, out / "head_curves.svg")


def variants_of(
    model: GroundingModel, eager: Session, folder: Path, inputs: dict[str, np.ndarray], threads: int
) -> dict[str, Call]:  # fmt: skip
    """All that is measured at one size, by name."""
    first, following = calls(model, inputs)
    video = {name: inputs[name] for name in model.projection.inputs}
    projecting = products_alone(folder / "projection.onnx", video, threads)
    grounding = products_alone(folder / "head.onnx", head_inputs(model, inputs), threads)
    return {
        EAGER: lambda: eager.run(inputs), FIRST: first, FIRST_PRODUCTS: lambda: (projecting(), grounding()),
        NEXT: following, NEXT_PRODUCTS: grounding,
    }  # fmt: skip


def row(batch: int, clips: int, samples: Samples) -> str:
    """Of the table."""
    cells = [str(batch), str(clips)]
    for name, seconds in samples.items():
        p50, p90, p99 = 1e3 * np.percentile(seconds, (50, 90, 99))
        cells.append(f"{p50:.1f} ({p90:.1f}, {p99:.1f})")
        whole = next((of for of, floor in FLOORS.items() if floor == name), None)
        cells += [] if whole is None else [f"{np.median(samples[whole]) / np.median(seconds):.2f}"]
    return f"| {' | '.join(cells)} |"


def draw(
    measured: Mapping[tuple[int, int], Samples], clips: tuple[int, ...], batches: tuple[int, ...], path: Path
) -> None:  # fmt: skip
    """p50 against T and against B, both axes logarithmic."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "sdst"
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    curves = (
        (axes[0], "clips of the video, one query", clips, [(1, T) for T in clips]),
        (axes[1], f"queries of one call, {clips[0]} clips", batches, [(B, clips[0]) for B in batches]),
    )
    for panel, label, xs, sizes in curves:
        for name, style in ((EAGER, "o-"), (FIRST, "s-"), (NEXT, "D-"), (NEXT_PRODUCTS, "k--")):
            panel.plot(xs, [1e3 * np.median(measured[size][name]) for size in sizes], style, label=name, markersize=4)
        panel.set(xscale="log", yscale="log", xlabel=label)
        panel.set_xticks(xs, [str(x) for x in xs])
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.minorticks_off()
        panel.grid(visible=True, alpha=0.3)
    axes[0].set_ylabel("ms a call, p50")
    axes[0].legend()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    tyro.cli(main)
