"""One ONNX file of a bundle to an engine and its sidecar."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.progress import Progress

from sdst_runtime.distribution import own_version
from sdst_runtime.errors import InputError
from sdst_runtime.files import atomic_files, make_directory
from sdst_runtime.sessions.plugin_library import Brought
from sdst_runtime.sessions.tensorrt.compat import load_tensorrt
from sdst_runtime.sessions.tensorrt.device import Device
from sdst_runtime.sessions.tensorrt.sidecar import FORMAT, Sidecar, read_sidecar, sidecar_path, write_sidecar

from .cache import copy_engine, find_engine, keep_engine
from .monitor import interruptible, make_monitor
from .network import EngineBuild
from .onnx_source import EngineGraph, read_graph
from .options import EngineOptions, require_options
from .profiles import Bucket, limits, profiles_for
from .rtx_build import RtxBuild
from .tensorrt_build import TensorRTBuild

LOGGER = logging.getLogger("sdst.engine")


def build_engine(
    onnx: Path, out: Path, buckets: Sequence[Bucket], options: EngineOptions, device: Device | None, bar: Progress,
    brought: Brought | None = None,
) -> Sidecar:  # fmt: skip
    """Write the engine of `onnx` to `out` and its sidecar beside it; takes minutes, shown in `bar`.

    `device` is the GPU that an engine of TensorRT is for; one for RTX needs none. `brought` is the library that came
    with the model, which is taken when the user trusts it or has it installed. An engine that was built before from
    the same things is copied. Raises EngineError when TensorRT cannot build it or built something else, DeviceError
    when the GPU fails, DependencyError when TensorRT or the plugin is missing, and InputError or ContractError for
    options and files that do not fit. On Ctrl-C nothing is left. A cache that cannot be written is a warning.
    """
    require_options(options)
    trt, graph = load_tensorrt(options.target), read_graph(onnx)
    build: EngineBuild
    if options.target == "rtx":
        build = RtxBuild(trt, graph, options.capabilities())
    else:
        assert device is not None, "an engine of TensorRT is built on its GPU"
        build = TensorRTBuild(trt, graph, options, device, brought)
    wanted = _wanted(graph, build, buckets, options)
    found = find_engine(wanted)
    if found is not None:
        copy_engine(found, out)
        return read_sidecar(out)
    started, stop = time.monotonic(), threading.Event()
    built = interruptible(lambda: build.run(wanted.profiles, make_monitor(trt, bar, stop)), stop)
    sidecar = dataclasses.replace(
        wanted,
        plan_sha256=hashlib.sha256(built.plan).hexdigest(),
        plan_bytes=len(built.plan),
        build_s=round(time.monotonic() - started, 1),
        layers=built.layers,
    )
    make_directory(out.parent)
    with atomic_files((out, sidecar_path(out))) as folder:
        (folder / out.name).write_bytes(built.plan)
        write_sidecar(folder / out.name, sidecar)
    _keep("timings", build.keep)
    _keep("engine", lambda: keep_engine(out, sidecar))
    return sidecar


def _wanted(graph: EngineGraph, build: EngineBuild, buckets: Sequence[Bucket], options: EngineOptions) -> Sidecar:
    """The sidecar but for what the build gives."""
    one_row_apart = options.target == "tensorrt"
    return Sidecar(
        format=FORMAT,
        sdst_version=own_version(),
        kind=graph.kind,
        precision=graph.precision,
        spec=graph.spec,
        steps=graph.steps,
        inputs=graph.inputs,
        outputs=graph.outputs,
        limits=limits(buckets) | graph.trained if graph.kind in ("projection", "head") else {},
        machine=build.machine,
        plugin=build.plugin,
        graph_sha256=graph.sha256,
        weights_sha256=graph.weights_sha256,
        profiles=profiles_for(graph.kind, graph.inputs, graph.spec, buckets, one_row_apart),
        flags=options.flags(),
        plan_sha256="",
        plan_bytes=0,
        build_s=0.0,
        target=options.target,
        compute=options.capabilities(),
    )


def _keep(what: str, write: Callable[[], None]) -> None:
    """The engine is finished: that a cache cannot be written does not fail it."""
    try:
        write()
    except InputError as error:
        LOGGER.warning("%s not kept for later builds: %s", what, error)
