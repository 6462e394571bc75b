"""SDST's head beside the heads of others, on this CPU: parameters, FLOPs, time, and the published accuracy.

    python benchmarks/peers.py --moment-detr DIR --qd-detr DIR --lighthouse DIR --r2-tuning DIR

Each DIR is a clone that you bring (docs/peers.md has the lines); any of the four may be left out. All weights are
random. Every model answers one query on one video, B 1, in eager torch and, where it exports, in ONNX Runtime in our
own kind of session; all run in turn, in one process. No number holds a backbone: features are at hand for all.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
import tyro
from head import calls, head_inputs, open_head, random_checkpoint, write_head
from peer_models import PUBLISHED, Peer, count_flops, load_peers
from timing import interleave, with_cpu_time

from sdst_calib.int8.collect import tensor_scales
from sdst_calib.int8.quantise import default_kept, find_products, quantise_model
from sdst_calib.int8.trial import save_quantised
from sdst_calib.taps import Feeds
from sdst_export.models import lower
from sdst_runtime.data.dataset import pad_inputs
from sdst_runtime.errors import InputError, SdstError
from sdst_runtime.files import write_json
from sdst_runtime.machine import load, load_warning, machine_facts
from sdst_runtime.sessions.base import Session
from sdst_runtime.sessions.int8_products import products_are_exact
from sdst_runtime.sessions.open import open_session
from sdst_runtime.sessions.ort import import_onnxruntime
from sdst_train.loop.checkpoint import Checkpoint
from sdst_train.model.sdst import SDST
from sdst_train.model.torch_session import TorchSession

OURS = "SDST, ONNX Runtime fp32, next query"  # what the others are divided by
LARGEST_ERROR = 1e-3  # of an exported model against torch
Call = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One model in one runner."""

    name: str
    method: str
    parameters: int
    flops: int
    run: Call


def main(
    moment_detr: Path | None = None,
    qd_detr: Path | None = None,
    lighthouse: Path | None = None,
    r2_tuning: Path | None = None,
    clips: int = 75,
    tokens: int = 20,
    threads: int = 2,
    seconds: float = 60.0,
    output: Path | None = None,
) -> None:
    """Print a Markdown table: p50, p90, p99, CPU time and its ratio to our next query of each model and runner.

    Args:
        moment_detr: A clone of jayleicn/moment_detr.
        qd_detr: A clone of wjun0830/QD-DETR.
        lighthouse: A clone of line/lighthouse.
        r2_tuning: A clone of yeliudev/R2-Tuning.
        clips: Clips of the video.
        tokens: Tokens of the query.
        threads: Of torch and of ONNX Runtime.
        seconds: Of timing, after a warm-up.
        output: JSON with every sample.
    """
    given = {"moment-detr": moment_detr, "qd-detr": qd_detr, "lighthouse": lighthouse, "r2-tuning": r2_tuning}
    clones = {option: folder for option, folder in given.items() if folder is not None}
    if not clones:
        raise InputError(f"expected at least one clone, got none; give some of --{', --'.join(given)}")
    torch.set_num_threads(threads)
    peers, missing = load_peers(clones, clips, tokens)
    with tempfile.TemporaryDirectory() as place:
        eager = [Row(f"{peer.name}, torch eager", peer.method, *_size(peer), peer.run) for peer in peers]
        rows = our_rows(random_checkpoint(), clips, tokens, threads, Path(place))
        exported = []
        for number, peer in enumerate(peers):
            name = f"{peer.name}, ONNX Runtime fp32"
            try:
                session = export(peer, Path(place) / f"{number}.onnx", threads)
            except SdstError as error:
                missing[name] = str(error)
                continue
            inputs = {key: tensor.numpy() for key, tensor in peer.inputs.items()}
            exported.append(Row(name, peer.method, *_size(peer), _call(session, inputs)))
        warning, before = load_warning(), load()
        rows = eager + rows + exported
        cpu: dict[str, list[float]] = {row.name: [] for row in rows}
        variants = {row.name: with_cpu_time(row.run, cpu[row.name]) for row in rows}
        samples = interleave(variants, seconds=seconds, settled=True)
    cpu_s = {name: cpu[name][-2 * len(samples[name]) :][1::2] for name in samples}  # of the calls that are timed
    facts = dict(machine_facts()) | {
        "torch": torch.__version__,
        "onnxruntime": import_onnxruntime().__version__,
        "threads": str(threads),
        "int8 products": "exact" if products_are_exact() else "would saturate here: computed in float",
        "load before": before,
        "load after": load(),
    }
    title = f"one query on one video, B 1 T {clips} L {tokens}, {threads} threads, {seconds:g} s"
    said = [title, "", markdown(rows, samples, cpu_s), ""]
    said += [f"not measured: {name}: {reason}" for name, reason in missing.items()]
    said += [", ".join(f"{name} {value}" for name, value in facts.items()), warning]
    sys.stdout.write("\n".join(said) + "\n")
    if output is not None:
        write_json(output, as_json(title, rows, samples, cpu_s, missing, facts, warning))


def our_rows(trained: Checkpoint, clips: int, tokens: int, threads: int, place: Path) -> list[Row]:
    """Our head: as trained in torch, and exported in fp32 and in int8; the first query has the projection too."""
    spec, rng = trained.spec, np.random.default_rng(0)
    video = rng.standard_normal((clips, spec.layers, spec.video_width)).astype(np.float32)
    inputs = pad_inputs([video], [rng.standard_normal((spec.layers, tokens, spec.text_width)).astype(np.float32)])
    size = sum(parameter.numel() for parameter in trained.model.parameters())
    flops_as_trained, flops_of = _flops(trained.model, inputs)[0], _flops(lower(trained).model, inputs)
    eager = TorchSession(trained.model)
    found = [Row("SDST, torch eager, first query", "SDST", size, flops_as_trained, lambda: eager.run(inputs))]
    write_head(trained, "fp32", place / "fp32")
    projection = {name: inputs[name] for name in ("video", "video_mask")}
    head = head_inputs(open_head(place / "fp32", threads), inputs)
    write_int8(place / "fp32", place / "int8", {"projection": lambda: [projection], "head": lambda: [head]})
    for precision in ("fp32", "int8"):
        first, following = calls(open_head(place / precision, threads), inputs)
        for query, flops, run in (("next", flops_of[1], following), ("first", flops_of[0], first)):
            found.append(Row(f"SDST, ONNX Runtime {precision}, {query} query", "SDST", size, flops, run))
    return found


def write_int8(source: Path, target: Path, feeds: Mapping[str, Feeds]) -> None:
    """The models of a folder in int8 with Q/DQ, as `sdst quantise` makes them: all layers but those it keeps."""
    target.mkdir()
    for name, given in feeds.items():
        path = source / f"{name}.onnx"
        model = onnx.load(path)
        products = find_products(model)
        kept = default_kept(product.layer for product in products)
        chosen = [product for product in products if product.layer not in kept]
        tensors = list(dict.fromkeys(product.activation for product in chosen))
        scales = tensor_scales(path, tensors, given, "mse", lambda done, of_all: None)
        quantised = quantise_model(model, {product.layer for product in chosen}, scales)
        save_quantised(quantised.model, target / path.name, source)


def export(peer: Peer, path: Path, threads: int) -> Session:
    """A peer in ONNX Runtime, at these shapes, answering as in torch. Raises InputError when it does not export."""
    expected = peer.run()
    names = [f"output_{number}" for number in range(len(expected))]
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                peer.module, tuple(peer.inputs.values()), str(path), input_names=list(peer.inputs),
                output_names=names, opset_version=17, dynamo=False,
            )  # fmt: skip
    except Exception as error:  # the exporter raises many types that share no base
        raise InputError(f"torch.onnx does not export it: {str(error).splitlines()[0]}") from error
    try:
        session = open_session(path, threads)
    except SdstError as error:
        raise InputError(f"ONNX Runtime does not load its export: {str(error.__cause__).splitlines()[0]}") from error
    got = session.run({name: tensor.numpy() for name, tensor in peer.inputs.items()})
    worst = max(float(np.abs(got[name] - one.numpy()).max()) for name, one in zip(names, expected, strict=True))
    if not worst <= LARGEST_ERROR:
        raise InputError(f"its ONNX file answers otherwise than torch, by {worst:.1e}, more than {LARGEST_ERROR:g}")
    return session


def markdown(rows: list[Row], samples: Mapping[str, list[float]], cpu_s: Mapping[str, list[float]]) -> str:
    """The table, least CPU time first; the last column is its ratio to that of our next query."""
    cpu_ms = {row.name: 1e3 * float(np.median(cpu_s[row.name])) for row in rows}
    lines = [
        "| model, runner | R1@0.7 val | test | parameters, M | GFLOP | p50 ms | p90 | p99 | CPU ms | of ours |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: cpu_ms[row.name]):
        p50, p90, p99 = (1e3 * float(x) for x in np.percentile(samples[row.name], (50, 90, 99)))
        accuracy = PUBLISHED[row.method]
        cells = [
            row.name, _percent(accuracy.val), _percent(accuracy.test), f"{row.parameters / 1e6:.1f}",
            f"{row.flops / 1e9:.2f}", f"{p50:.1f}", f"{p90:.1f}", f"{p99:.1f}",
            f"{cpu_ms[row.name]:.1f}", f"{cpu_ms[row.name] / cpu_ms[OURS]:.2f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def as_json(
    title: str,
    rows: list[Row],
    samples: Mapping[str, list[float]],
    cpu_s: Mapping[str, list[float]],
    missing: Mapping[str, str],
    facts: Mapping[str, str],
    warning: str,
) -> dict[str, object]:
    """What was measured, with every sample, in seconds."""

    def accuracy(method: str) -> dict[str, object]:
        return {f"r1_07_{key}" if key != "source" else key: value for key, value in asdict(PUBLISHED[method]).items()}

    return {
        "title": title,
        "machine": dict(facts),
        "warning": warning,
        "not_measured": dict(missing),
        "rows": [
            {"name": row.name, "parameters": row.parameters, "flops": row.flops, **accuracy(row.method),
             "seconds": samples[row.name], "cpu_seconds": cpu_s[row.name]}
            for row in rows
        ],
    }  # fmt: skip


def _size(peer: Peer) -> tuple[int, int]:
    return sum(parameter.numel() for parameter in peer.module.parameters()), count_flops(peer.run)


def _flops(model: SDST, inputs: Mapping[str, np.ndarray]) -> tuple[int, int]:
    """Of a first query and of a next one."""
    video, video_mask, text, text_mask = (
        torch.from_numpy(inputs[name]) for name in ("video", "video_mask", "text", "text_mask")
    )
    model.eval().requires_grad_(False)  # the counter's hooks want a gradient of what has one
    projected = model.project(video, video_mask)
    following = count_flops(lambda: model.ground_projected(projected, video_mask, text, text_mask))
    return following + count_flops(lambda: model.project(video, video_mask)), following


def _call(session: Session, inputs: Mapping[str, np.ndarray]) -> Call:
    return lambda: session.run(inputs)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    try:
        tyro.cli(main)
    except SdstError as error:
        sys.stderr.write(f"benchmarks/peers.py: {error}\n")
        sys.exit(2)
