"""What builds for both of NVIDIA's libraries have in common: a builder, the parsed graph, the profiles, the plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sdst_runtime.errors import DeviceError
from sdst_runtime.sessions.tensorrt.compat import PRODUCTS, Target, parser_errors, shared_logger, take_errors
from sdst_runtime.sessions.tensorrt.sidecar import MachineRecord, PluginRecord, Profile

from ..errors import EngineError
from .onnx_source import EngineGraph

MOST_ERRORS = 5  # of the parser that a message names


@dataclass(frozen=True)
class Built:
    """What a build gives."""

    plan: bytes
    layers: int  # of the network that was built


class EngineBuild(Protocol):
    """A build for one library."""

    machine: MachineRecord
    plugin: PluginRecord | None

    def run(self, profiles: Sequence[Profile], monitor: Any) -> Built:
        """Build and check the plan, in any thread. Raises EngineError, DeviceError."""
        ...

    def keep(self) -> None:
        """Keep what makes later builds shorter. Raises InputError when it cannot be written."""
        ...


class NetworkBuilder:
    """A builder of one library for one graph."""

    def __init__(self, trt: Any, target: Target, graph: EngineGraph) -> None:
        self.trt, self.graph = trt, graph
        self.product, self.name, self.logger = PRODUCTS[target], graph.path.name, shared_logger(trt)

    def builder(self) -> Any:
        """A trt.Builder. Raises DeviceError when there is none."""
        try:
            return self.trt.Builder(self.logger)
        except TypeError as error:  # how the bindings say that they got none
            raise DeviceError(f"{self.product} made no builder: {take_errors(self.logger)}") from error

    def parse(self, network: Any, model: bytes) -> None:
        """Fill the network. Raises EngineError with what the parser says."""
        parser = self.trt.OnnxParser(network, self.logger)
        if not parser.parse(model, path=str(self.graph.path)):
            errors = parser_errors(parser)
            more = f"; and {len(errors) - MOST_ERRORS} more" if len(errors) > MOST_ERRORS else ""
            raise EngineError(f"{self.name}: {self.product} cannot read it: {'; '.join(errors[:MOST_ERRORS])}{more}")

    def config(self, builder: Any, monitor: Any) -> Any:
        """A configuration in which float32 is float32: by default products are in TF32, with the 10 bits of half."""
        config = builder.create_builder_config()
        config.progress_monitor = monitor
        config.clear_flag(self.trt.BuilderFlag.TF32)
        return config

    def add_profiles(self, builder: Any, config: Any, profiles: Sequence[Profile]) -> None:
        """Raises EngineError when one is refused."""
        for profile in profiles:
            optimization_profile = builder.create_optimization_profile()
            for name, shapes in profile.items():
                optimization_profile.set_shape(name, shapes.min, shapes.opt, shapes.max)
            if config.add_optimization_profile(optimization_profile) < 0:
                raise EngineError(f"{self.name}: {self.product} refused a profile: {take_errors(self.logger)}")

    def plan(self, builder: Any, network: Any, config: Any) -> bytes:
        """The engine's bytes. Raises EngineError when there are none."""
        plan = builder.build_serialized_network(network, config)
        if plan is None or not bytes(plan):
            raise EngineError(f"{self.name}: {self.product} built no engine: {take_errors(self.logger)}")
        return bytes(plan)
