"""One ONNX file of a bundle to a TensorRT engine and its sidecar."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress

from sdst_runtime.distribution import own_version
from sdst_runtime.errors import DeviceError, InputError
from sdst_runtime.files import atomic_files, make_directory, write_bytes
from sdst_runtime.sessions.plugin_library import Brought, PluginInfo, open_plugin_library
from sdst_runtime.sessions.tensorrt.compat import (
    is_jetson,
    load_tensorrt,
    make_network,
    make_runtime,
    parser_errors,
    plugin_layers,
    register_plugin,
    shared_logger,
    take_errors,
)
from sdst_runtime.sessions.tensorrt.device import Device
from sdst_runtime.sessions.tensorrt.sidecar import (
    FORMAT,
    EngineFlags,
    MachineRecord,
    PluginRecord,
    Profile,
    Sidecar,
    read_sidecar,
    sidecar_path,
    write_sidecar,
)

from ..errors import EngineError
from .cache import copy_engine, find_engine, keep_engine, timing_cache_path
from .inspect_plan import read_layers, require_layers
from .monitor import interruptible, make_monitor
from .onnx_source import EngineGraph, model_for_parser, read_graph
from .profiles import Bucket, limits, profiles_for

LOGGER = logging.getLogger("sdst.engine")
MOST_ERRORS = 5  # of the parser that a message names


@dataclass(frozen=True)
class EngineOptions:
    """How to build."""

    workspace_mib: int | None = None  # of the GPU's memory while kernels are tried; None: all
    level: int = 3  # 0..5: how long TensorRT looks for fast kernels
    timing_cache: Path | None = None  # None: that of the cache folder
    version_compatible: bool = False  # runs on later TensorRTs of the same major, a little slower
    hardware_compatible: bool = False  # runs on Ampere and later, slower; not on Jetson
    embed_plugin: bool = False  # the plugin's library inside the plan, which is then version compatible too

    def flags(self) -> EngineFlags:
        """What of it goes into the sidecar.

        An embedded plugin makes the engine version compatible: in others TensorRT embeds none and says nothing
        (NvInfer.h, IBuilderConfig::setPluginsToSerialize).
        """
        portable = self.version_compatible or self.embed_plugin
        return EngineFlags(self.workspace_mib, self.level, portable, self.hardware_compatible, self.embed_plugin)


def build_engine(
    onnx: Path, out: Path, buckets: Sequence[Bucket], options: EngineOptions, device: Device, bar: Progress,
    brought: Brought | None = None,
) -> Sidecar:  # fmt: skip
    """Write the engine of `onnx` to `out` and its sidecar beside it; takes minutes, shown in `bar`.

    `brought` is the library that came with the model, which is taken when the user trusts it or has it installed.
    An engine that was built before from the same things is copied. Raises EngineError when TensorRT cannot build it or
    built something else, DeviceError when the GPU fails, DependencyError when TensorRT or the plugin is missing, and
    InputError or ContractError for options and files that do not fit. On Ctrl-C nothing is left. A cache that cannot
    be written is a warning.
    """
    _require_options(options)
    trt, graph = load_tensorrt(), read_graph(onnx)
    plugin = open_plugin_library(device.plugin_device, brought).info if graph.rdsa else None
    facts = device.facts
    machine = MachineRecord(trt.__version__, facts.sm, facts.gpu, facts.driver, facts.cuda)
    wanted = _wanted(graph, machine, plugin, buckets, options)
    found = find_engine(wanted)
    if found is not None:
        copy_engine(found, out)
        return read_sidecar(out)
    started, stop = time.monotonic(), threading.Event()
    build = _Build(trt, graph, plugin, wanted.profiles, options, machine)
    plan, timings = interruptible(lambda: build.run(make_monitor(trt, bar, stop), device), stop)
    sidecar = dataclasses.replace(
        wanted,
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        plan_bytes=len(plan),
        build_s=round(time.monotonic() - started, 1),
    )
    make_directory(out.parent)
    with atomic_files((out, sidecar_path(out))) as folder:
        (folder / out.name).write_bytes(plan)
        write_sidecar(folder / out.name, sidecar)
    _keep("timings", lambda: write_bytes(build.timings, timings))
    _keep("engine", lambda: keep_engine(out, sidecar))
    return sidecar


class _Build:
    """One build: what TensorRT is given, in its order."""

    def __init__(
        self,
        trt: Any,
        graph: EngineGraph,
        plugin: PluginInfo | None,
        profiles: Sequence[Profile],
        options: EngineOptions,
        machine: MachineRecord,
    ) -> None:
        self.trt, self.graph, self.plugin = trt, graph, plugin
        self.profiles, self.options = profiles, options
        self.timings = options.timing_cache or timing_cache_path(machine)
        self.logger = shared_logger(trt)

    def run(self, monitor: Any, device: Device) -> tuple[bytes, bytes]:
        """The bytes of the plan, after the inspector has seen it, and of the timings."""
        with device.current():  # this is not the main thread
            if self.plugin is not None:
                register_plugin(self.trt, self.plugin)
            plan, timings = self._build(monitor)
            self._inspect(plan)
            return plan, timings

    def _build(self, monitor: Any) -> tuple[bytes, bytes]:
        """Network, configuration and TensorRT's own copy of the plan end here, before the engine is loaded."""
        builder = self._builder()
        network = make_network(self.trt, builder)
        self._parse(network)
        config = self._config(builder, monitor)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise EngineError(f"{self._name}: TensorRT built no engine: {take_errors(self.logger)}")
        timing_cache = config.get_timing_cache()
        return bytes(plan), bytes(timing_cache.serialize())

    @property
    def _name(self) -> str:
        return self.graph.path.name

    def _builder(self) -> Any:
        try:
            return self.trt.Builder(self.logger)
        except TypeError as error:  # how the bindings say that they got none
            raise DeviceError(f"TensorRT made no builder: {take_errors(self.logger)}") from error

    def _parse(self, network: Any) -> None:
        parser = self.trt.OnnxParser(network, self.logger)
        if not parser.parse(model_for_parser(self.graph.path), path=str(self.graph.path)):
            errors = parser_errors(parser)
            more = f"; and {len(errors) - MOST_ERRORS} more" if len(errors) > MOST_ERRORS else ""
            raise EngineError(f"{self._name}: TensorRT cannot read it: {'; '.join(errors[:MOST_ERRORS])}{more}")
        found = plugin_layers(self.trt, network)
        if len(found) != self.graph.rdsa:
            raise EngineError(
                f"{self._name}: expected {self.graph.rdsa} plugin layers, TensorRT's parser made {len(found)};"
                " export the bundle again"
            )

    def _config(self, builder: Any, monitor: Any) -> Any:
        trt, options = self.trt, self.options
        config = builder.create_builder_config()
        config.progress_monitor = monitor
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the inspector then tells types
        config.builder_optimization_level = options.level
        if options.workspace_mib is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
        if options.flags().version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if options.hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        if options.embed_plugin and self.plugin is not None:
            config.plugins_to_serialize = [str(self.plugin.path)]
        self._load_timings(config)
        for profile in self.profiles:
            optimization_profile = builder.create_optimization_profile()
            for name, shapes in profile.items():
                optimization_profile.set_shape(name, shapes.min, shapes.opt, shapes.max)
            if config.add_optimization_profile(optimization_profile) < 0:
                raise EngineError(f"{self._name}: TensorRT refused a profile: {take_errors(self.logger)}")
        return config

    def _load_timings(self, config: Any) -> None:
        known = self._known_timings()
        timing_cache = config.create_timing_cache(known)  # None for bytes that it cannot read
        if timing_cache is not None and config.set_timing_cache(timing_cache, False):
            return
        if known:
            LOGGER.warning("%s: timings of another GPU or TensorRT; they are measured anew", self.timings)
        empty = config.create_timing_cache(b"")
        if empty is None or not config.set_timing_cache(empty, False):
            raise EngineError(f"{self._name}: TensorRT made no timing cache: {take_errors(self.logger)}")

    def _known_timings(self) -> bytes:
        try:
            return self.timings.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            LOGGER.warning("cannot read %s (%s); timings are measured anew", self.timings, error.strerror)
            return b""

    def _inspect(self, plan: bytes) -> None:
        runtime = make_runtime(self.trt, self.logger, host_code=True)  # our own plan, made a moment ago
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineError(f"{self._name}: TensorRT cannot load what it built: {take_errors(self.logger)}")
        inspector = engine.create_engine_inspector()
        context = engine.create_execution_context(self.trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            LOGGER.warning("%s: types of layers stay unknown: %s", self._name, take_errors(self.logger))
        else:  # without shapes the inspector tells no types of tensors with free axes
            for name, shapes in self.profiles[0].items():
                context.set_input_shape(name, shapes.opt)
            inspector.execution_context = context
        layers = read_layers(inspector.get_engine_information(self.trt.LayerInformationFormat.JSON))
        require_layers(self._name, layers, self.graph.rdsa, self.graph.half_share)


def _wanted(
    graph: EngineGraph,
    machine: MachineRecord,
    plugin: PluginInfo | None,
    buckets: Sequence[Bucket],
    options: EngineOptions,
) -> Sidecar:
    """The sidecar but for what the build gives."""
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
        machine=machine,
        plugin=PluginRecord(plugin.version, plugin.sha256) if plugin else None,
        graph_sha256=graph.sha256,
        weights_sha256=graph.weights_sha256,
        profiles=profiles_for(graph.kind, graph.inputs, graph.spec, buckets),
        flags=options.flags(),
        plan_sha256="",
        plan_bytes=0,
        build_s=0.0,
    )


def _keep(what: str, write: Callable[[], None]) -> None:
    """The engine is finished: that a cache cannot be written does not fail it."""
    try:
        write()
    except InputError as error:
        LOGGER.warning("%s not kept for later builds: %s", what, error)


def _require_options(options: EngineOptions) -> None:
    if not 0 <= options.level <= 5:
        raise InputError(f"level: expected 0 to 5, got {options.level}")
    if options.workspace_mib is not None and options.workspace_mib < 1:
        raise InputError(f"workspace: expected at least 1 MiB, got {options.workspace_mib}")
    if options.hardware_compatible and is_jetson():
        raise InputError(
            "hardware compatible: expected a GPU of a PC or server, TensorRT has it not on Jetson; leave it"
        )
    if options.timing_cache is not None and options.timing_cache.is_dir():
        raise InputError(f"timing cache: expected a file, {options.timing_cache} is a directory")
