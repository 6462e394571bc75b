"""An engine of TensorRT: built on the GPU that runs it, with sdst::RDSA as our plugin, and inspected."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from sdst_runtime.files import write_bytes
from sdst_runtime.sessions.plugin_library import Brought, PluginInfo, open_plugin_library
from sdst_runtime.sessions.tensorrt.compat import (
    make_network,
    make_runtime,
    plugin_layers,
    register_plugin,
    take_errors,
)
from sdst_runtime.sessions.tensorrt.device import Device
from sdst_runtime.sessions.tensorrt.sidecar import MachineRecord, PluginRecord, Profile

from ..errors import EngineError
from .cache import timing_cache_path
from .inspect_plan import read_layers, require_layers
from .network import Built, NetworkBuilder
from .onnx_source import EngineGraph, model_for_parser
from .options import EngineOptions

LOGGER = logging.getLogger("sdst.engine")


class TensorRTBuild:
    """One build: what TensorRT is given, in its order."""

    def __init__(
        self, trt: Any, graph: EngineGraph, options: EngineOptions, device: Device, brought: Brought | None
    ) -> None:  # fmt: skip
        """Raises DependencyError without the plugin's library, ContractError for one that does not fit."""
        self.trt, self.graph, self.options, self.device = trt, graph, options, device
        facts = device.facts
        self.machine = MachineRecord(trt.__version__, facts.sm, facts.gpu, facts.driver, facts.cuda)
        self._library: PluginInfo | None = None
        if graph.rdsa:
            self._library = open_plugin_library(device.plugin_device, brought).info
        self.plugin = PluginRecord(self._library.version, self._library.sha256) if self._library else None
        self._file = options.timing_cache or timing_cache_path(self.machine)
        self._network = NetworkBuilder(trt, "tensorrt", graph)
        self.logger = self._network.logger
        self._timings = b""

    def run(self, profiles: Sequence[Profile], monitor: Any) -> Built:
        """The plan, after the inspector has seen it."""
        with self.device.current():  # this is not the main thread
            if self._library is not None:
                register_plugin(self.trt, self._library)
            built = self._build(profiles, monitor)
            self._inspect(built.plan, profiles)
            return built

    def keep(self) -> None:
        """Keep the timings of kernels."""
        write_bytes(self._file, self._timings)

    def _build(self, profiles: Sequence[Profile], monitor: Any) -> Built:
        """Network, configuration and TensorRT's own copy of the plan end here, before the engine is loaded."""
        builder = self._network.builder()
        network = make_network(self.trt, builder)
        self._network.parse(network, model_for_parser(self.graph.path))
        self._require_plugins(network)
        config = self._config(builder, monitor)
        self._network.add_profiles(builder, config, profiles)
        plan = self._network.plan(builder, network, config)
        timing_cache = config.get_timing_cache()
        self._timings = bytes(timing_cache.serialize())
        return Built(plan, network.num_layers)

    def _require_plugins(self, network: Any) -> None:
        found = plugin_layers(self.trt, network)
        if len(found) != self.graph.rdsa:
            raise EngineError(
                f"{self._network.name}: expected {self.graph.rdsa} plugin layers, TensorRT's parser made {len(found)};"
                " export the bundle again"
            )

    def _config(self, builder: Any, monitor: Any) -> Any:
        trt, options = self.trt, self.options
        config = self._network.config(builder, monitor)
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the inspector then tells types
        config.builder_optimization_level = options.level
        if options.workspace_mib is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
        if options.flags().version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if options.hardware_compatible:
            config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
        if options.embed_plugin and self._library is not None:
            config.plugins_to_serialize = [str(self._library.path)]
        self._load_timings(config)
        return config

    def _load_timings(self, config: Any) -> None:
        known = self._known_timings()
        timing_cache = config.create_timing_cache(known)  # None for bytes that it cannot read
        if timing_cache is not None and config.set_timing_cache(timing_cache, False):
            return
        if known:
            LOGGER.warning("%s: timings of another GPU or TensorRT; they are measured anew", self._file)
        empty = config.create_timing_cache(b"")
        if empty is None or not config.set_timing_cache(empty, False):
            raise EngineError(f"{self._network.name}: TensorRT made no timing cache: {take_errors(self.logger)}")

    def _known_timings(self) -> bytes:
        try:
            return self._file.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            LOGGER.warning("cannot read %s (%s); timings are measured anew", self._file, error.strerror)
            return b""

    def _inspect(self, plan: bytes, profiles: Sequence[Profile]) -> None:
        name = self._network.name
        runtime = make_runtime(self.trt, self.logger, host_code=True)  # our own plan, made a moment ago
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineError(f"{name}: TensorRT cannot load what it built: {take_errors(self.logger)}")
        inspector = engine.create_engine_inspector()
        context = engine.create_execution_context(self.trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            LOGGER.warning("%s: types of layers stay unknown: %s", name, take_errors(self.logger))
        else:  # without shapes the inspector tells no types of tensors with free axes
            for input_name, shapes in profiles[0].items():
                context.set_input_shape(input_name, shapes.opt)
            inspector.execution_context = context
        layers = read_layers(inspector.get_engine_information(self.trt.LayerInformationFormat.JSON))
        require_layers(name, layers, self.graph.rdsa, self.graph.half_share)
