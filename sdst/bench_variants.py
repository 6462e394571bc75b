"""The variants of `sdst bench`: what stands behind each name, how it is opened, and why one cannot run here.

A variant is described by plain values, so that another process can open it and have its memory measured.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdst_runtime.bench.measure import Footprint, Sessions, Shape, head_inputs, make_inputs
from sdst_runtime.children import end_with_parent
from sdst_runtime.errors import DependencyError, InputError, SdstError, require_package
from sdst_runtime.grounding.bundle import DATA_SUFFIX, TOKENIZER, Bundle
from sdst_runtime.grounding.tokenizer import Tokenizer
from sdst_runtime.machine import gpus, memory_bytes, peak_memory_bytes
from sdst_runtime.sessions.base import GROUNDER_MODELS
from sdst_runtime.sessions.open import open_engine
from sdst_runtime.sessions.tensorrt.compat import PRODUCTS
from sdst_runtime.sessions.tensorrt.sidecar import read_sidecar

KINDS = ("torch", "compile", "onnxrt", "trt", "trt-no-plugin")
HEAD_ONLY = "torch variants run the projection and the head only"
NO_GPU_MEMORY = "GPU memory: no GPU, or nvidia-smi does not tell it"
GRAPH_SHAPES = 4  # CUDA graphs that a torch session keeps


@dataclass(frozen=True)
class Candidate:
    """One variant. `reason` says why it cannot run here; empty when it can."""

    name: str
    kind: str
    what: str  # for a person
    source: Path | None = None  # a bundle or a checkpoint
    threads: int | None = None
    workers: int = 1  # TensorRT: calls at a time
    kernel: bool = False  # torch: the compiled kernel, in half precision
    graphs: int = 0  # shapes kept as CUDA graphs; TensorRT: all or none
    reason: str = ""


def parse_kinds(text: str) -> tuple[str, ...]:
    """Names from `a,b`, each once. Raises InputError for one that is none."""
    kinds = tuple(dict.fromkeys(kind.strip() for kind in text.split(",") if kind.strip()))
    for kind in kinds:
        if kind not in KINDS:
            raise InputError(f"--against: expected some of {','.join(KINDS)}, got {kind!r}")
    return kinds


def candidates(
    bundles: Sequence[Bundle], kinds: Sequence[str], checkpoint: Path | None, threads: int | None, workers: int
) -> list[Candidate]:  # fmt: skip
    """Variants of each bundle, then those of `kinds` that no bundle is, in their order."""
    found = [one for bundle in bundles for one in _of_bundle(bundle, threads)]
    twice = {one.name for one in found if [other.name for other in found].count(one.name) > 1}
    found = [replace(one, name=f"{one.name} in {one.source}") if one.name in twice else one for one in found]
    for kind in kinds:
        if kind in ("torch", "compile"):
            found += _of_torch(kind, checkpoint, threads)
        elif kind not in {one.kind for one in found}:
            found.append(Candidate(kind, kind, _NOT_GIVEN[kind][0], reason=_NOT_GIVEN[kind][1]))
    return [replace(one, workers=workers) for one in found]


def open_candidate(candidate: Candidate) -> Sessions:
    """Its sessions by model. Raises SdstError when it cannot be opened."""
    if candidate.reason:
        raise InputError(candidate.reason)
    assert candidate.source is not None
    if candidate.kind in ("torch", "compile"):
        return _open_torch(candidate)
    bundle = Bundle.open(candidate.source)
    if candidate.kind == "onnxrt":
        return {model: bundle.session(model, candidate.threads) for model in GROUNDER_MODELS}
    graphs = bool(candidate.graphs)
    return {model: open_engine(bundle.path(model), candidate.workers, graphs) for model in GROUNDER_MODELS}


def vocabulary_of(bundle: Bundle) -> int:
    """Token ids that the bundle's text model knows."""
    return Tokenizer.from_file(bundle.directory / TOKENIZER).vocab_size


def footprint(candidate: Candidate, bundle: Bundle, shape: Shape) -> Footprint:
    """Files, and the memory of a new process that opens the variant and runs each model once on `shape`."""
    files = _files(candidate)
    if candidate.reason:
        return Footprint(candidate.name, files, None, None, candidate.reason)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), end_with_parent, (os.getpid(),)) as pool:
        try:
            memory, gpu = pool.submit(_memory_of, candidate, bundle.directory, shape).result()
        except SdstError as error:
            return Footprint(candidate.name, files, None, None, str(error))
        except BrokenProcessPool:
            return Footprint(candidate.name, files, None, None, "the process that measured it was killed")
    return Footprint(candidate.name, files, memory, gpu, "" if gpu is not None else NO_GPU_MEMORY)


_NOT_GIVEN = {  # kind: (what it is, why it is not there)
    "onnxrt": ("ONNX Runtime", "none of the bundles holds ONNX files; name one that  sdst export  wrote"),
    "trt": ("TensorRT", "none of the bundles holds engines; name one that  sdst build  wrote"),
    "trt-no-plugin": (
        "TensorRT, sdst::RDSA as its function body",
        "sdst build  cannot make these yet: TensorRT gets sdst::RDSA as the plugin or not at all",
    ),
}


def _of_bundle(bundle: Bundle, threads: int | None) -> list[Candidate]:
    place, head = bundle.directory, bundle.path("head")
    if head.suffix == ".onnx":
        return [Candidate(f"onnxrt {place.name}", "onnxrt", f"ONNX Runtime, {place}", place, threads)]
    target = read_sidecar(head).target
    name, product = f"{'rtx' if target == 'rtx' else 'trt'} {place.name}", PRODUCTS[target]
    return [
        Candidate(name, "trt", f"{product}, {place}", place),
        Candidate(f"{name}, CUDA graph", "trt", f"{product}, CUDA graphs, {place}", place, graphs=1),
    ]


def _of_torch(kind: str, checkpoint: Path | None, threads: int | None) -> list[Candidate]:
    no_file = "" if checkpoint else "a bundle holds no torch weights; give --checkpoint FILE"
    if kind == "compile":
        return [Candidate("torch.compile", kind, "torch.compile, float32", checkpoint, threads, reason=no_file)]
    served = "torch, compiled RDSA, float16"
    no_gpu = no_file or _why_no_gpu()
    return [
        Candidate("torch eager", kind, "torch as trained, float32", checkpoint, threads, reason=no_file),
        Candidate("torch kernel", kind, served, checkpoint, threads, kernel=True, reason=no_gpu),
        Candidate(
            "torch kernel, CUDA graph", kind, f"{served}, CUDA graph", checkpoint, threads, kernel=True,
            graphs=GRAPH_SHAPES, reason=no_gpu,
        ),
    ]  # fmt: skip


def _why_no_gpu() -> str:
    try:
        torch: Any = require_package("torch", "train")
    except DependencyError as error:
        return str(error)
    return "" if torch.cuda.is_available() else "needs a GPU, and torch sees none"


def _open_torch(candidate: Candidate) -> Sessions:
    torch: Any = require_package("torch", "train")
    checkpoints: Any = require_package("sdst_train.loop.checkpoint", "train")
    serving: Any = require_package("sdst_export.serving", "train")
    if candidate.threads is not None:
        torch.set_num_threads(candidate.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = checkpoints.load_checkpoint(candidate.source).model.to(device)
    if candidate.kernel:
        model = serving.serving_model(model, device, "fp16")
    return serving.torch_sessions(model, compiled=candidate.kind == "compile", graphs=candidate.graphs)


def _memory_of(candidate: Candidate, bundle: Path, shape: Shape) -> tuple[int | None, int | None]:
    """(bytes by which this process grew at its peak, bytes more on the GPU). Runs in a process of its own."""
    opened = Bundle.open(bundle)
    inputs = make_inputs(opened.manifest.spec, shape, vocabulary_of(opened))
    if candidate.kind in ("torch", "compile"):
        require_package("torch", "train")
        require_package("sdst_export.serving", "train")
    before, gpu_before = memory_bytes(), _gpu_bytes()
    sessions = open_candidate(candidate)
    for model, session in sessions.items():
        session.run(head_inputs(sessions, inputs, shape.queries) if model == "head" else inputs[model])
    peak, gpu_after = peak_memory_bytes(), _gpu_bytes()
    grown = peak - before if peak is not None and before is not None else None
    return grown, gpu_after - gpu_before if gpu_after is not None and gpu_before is not None else None


def _gpu_bytes() -> int | None:
    used_mib = next((gpu.used_mib for gpu in gpus()), None)
    return None if used_mib is None else used_mib * 2**20


def _files(candidate: Candidate) -> dict[str, int]:
    if candidate.source is None or not candidate.source.exists():
        return {}
    if candidate.source.is_file():
        return {candidate.source.name: candidate.source.stat().st_size}
    models = Bundle.open(candidate.source).manifest.models
    paths = [candidate.source / (name + suffix) for name in models.values() for suffix in ("", DATA_SUFFIX)]
    return {path.name: path.stat().st_size for path in paths if path.is_file()}
